#!/bin/sh
# build.sh FOLDER: builds posthouse and posthouse-demo-app for an image (optimised, static, without debug information) and
# puts them into FOLDER. The unstripped ones stay in cargo's own folder, for debuggers.
set -eu
out=${1:?usage: build.sh FOLDER}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"

# With --target, cargo keeps these flags from build scripts and procedural macros, which cannot be static. The programs name
# no folder of the machine that built them.
target=$(rustc -vV | sed -n 's/^host: //p')
CARGO_ENCODED_RUSTFLAGS=$(printf '%s\037%s\037%s\037%s' -C target-feature=+crt-static \
    "--remap-path-prefix=$root=/src" "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo")
export CARGO_ENCODED_RUSTFLAGS
cargo build --locked --release --target "$target" --package posthouse --package posthouse-testkit \
    --bin posthouse --bin posthouse-demo-app
for program in posthouse posthouse-demo-app; do
    # Function names stay: a panic's message and a profile need them.
    strip --strip-debug -o "$out/$program" "${CARGO_TARGET_DIR:-target}/$target/release/$program"
done
