//! Puts into the binary how it was built, for `posthouse --version` and the build metric: the commit (told by whoever
//! builds a release in `POSTHOUSE_COMMIT`; asking git here would rebuild the crate at every commit), the profile, the
//! target and the compiler.

use std::env;
use std::process::Command;

fn main() {
    let commit = env::var("POSTHOUSE_COMMIT").ok().filter(|c| !c.is_empty()).unwrap_or_else(|| "unknown".into());
    let rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.split_whitespace().nth(1).map(str::to_owned))
        .unwrap_or_else(|| "unknown".into());
    let var = |name: &str| env::var(name).unwrap_or_default();
    for (name, value) in [("COMMIT", commit), ("PROFILE", var("PROFILE")), ("TARGET", var("TARGET")), ("RUSTC", rustc)]
    {
        println!("cargo:rustc-env=POSTHOUSE_BUILD_{name}={value}");
    }
    println!("cargo:rerun-if-env-changed=POSTHOUSE_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
}
