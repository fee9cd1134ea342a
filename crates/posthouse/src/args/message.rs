//! Clap's errors as one line: what is wrong and where it was written. Scripts and container logs show lines, and the
//! usage text that clap adds hides the one that matters.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;

/// Turns clap's error into one line without a line end.
pub(crate) fn one_line(error: &clap::Error, argv: &[OsString]) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command is given; 'posthouse --help' lists them".into();
    }
    let rendered = error.render().to_string();
    let mut words: Vec<&str> = Vec::new();
    for line in rendered.lines() {
        let line = line.trim();
        // What follows is the same for every error.
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        words.extend(line.strip_prefix("error: ").unwrap_or(line).split_whitespace());
    }
    let mut text = words.join(" ");
    if matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand) {
        text.push_str(&match subcommand(argv) {
            Some(command) => format!("; 'posthouse {command} --help' lists the flags"),
            None => "; 'posthouse --help' lists the commands".to_owned(),
        });
    }
    if let Some(variable) = variable_of(error, argv) {
        text.push_str(&format!(" (from the environment variable {variable})"));
    }
    text
}

/// The environment variable that a wrong value came from, when the flag itself is not on the command line.
fn variable_of(error: &clap::Error, argv: &[OsString]) -> Option<String> {
    let ContextValue::String(argument) = error.get(ContextKind::InvalidArg)? else { return None };
    let flag = argument.split_whitespace().next()?;
    let long = flag.strip_prefix("--")?;
    let given = |word: &OsString| {
        let word = word.to_string_lossy();
        word == flag || word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
    };
    if argv.iter().any(given) {
        return None;
    }
    let cli = Cli::command();
    let command = cli.find_subcommand(subcommand(argv)?)?;
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long))?;
    Some(arg.get_env()?.to_string_lossy().into_owned())
}

/// The subcommand, which stands first since the program itself has no flags but --help and --version.
fn subcommand(argv: &[OsString]) -> Option<&str> {
    let word = argv.get(1)?.to_str()?;
    Cli::command().find_subcommand(word).map(|_| word)
}
