//! Texts made from the definition of the command line: completion scripts, manual pages, and the reference in Markdown.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use crate::args::{Cli, ManArgs};
use crate::failure::Failure;

pub fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "chainfire-client", &mut script);
    print(&script)
}

pub fn run(args: ManArgs) -> Result<(), Failure> {
    if args.markdown {
        return print(markdown().as_bytes());
    }
    let Some(folder) = args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(built()).manual("Chainfire").render(&mut page)?;
        return print(&page);
    };
    let write = || {
        fs::create_dir_all(&folder)?;
        // Globals stand in the page of the program; in each of forty pages they would hide what is the command's own.
        clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &folder)
    };
    write().map_err(|error| Failure::local(format!("{}: manual pages cannot be written: {error}", folder.display())))
}

fn print(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout().write_all(text).map_err(Failure::from)
}

fn built() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// docs/reference/cli.md
pub fn markdown() -> String {
    let mut out = String::from(
        "# chainfire-client\n\n<!-- Made by `chainfire-client man --markdown`; change crates/cli/src/args.rs instead. -->\n\n",
    );
    let command = built();
    let _ = writeln!(out, "{}.\n", command.get_about().map(ToString::to_string).unwrap_or_default());
    let _ = writeln!(out, "## Options of every command\n");
    options(&mut out, command.get_arguments().filter(|arg| arg.is_global_set()));
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(out, "```\n{after}\n```\n");
    }
    for sub in visible(&command) {
        section(&mut out, sub, "chainfire-client");
    }
    out
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn section(out: &mut String, command: &Command, above: &str) {
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    if command.has_subcommands() {
        for sub in visible(command) {
            section(out, sub, &name);
        }
        return;
    }
    let _ = writeln!(out, "## {}\n\n{about}.\n", name.trim_start_matches("chainfire-client "));
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(out, "```\n{}\n```\n", usage.trim_start_matches("Usage: "));
    options(out, command.get_arguments().filter(|arg| !arg.is_global_set()));
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(out, "```\n{after}\n```\n");
    }
}

fn options<'a>(out: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let shown = arguments.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version");
    let mut rows = String::new();
    for arg in shown {
        let value = || arg.get_value_names().and_then(|names| names.first()).map(|name| name.to_string());
        let value = if arg.get_action().takes_values() { value().unwrap_or_default() } else { String::new() };
        let name = match (arg.get_short(), arg.get_long()) {
            (Some(short), Some(long)) => format!("-{short}, --{long} {value}"),
            (None, Some(long)) => format!("--{long} {value}"),
            (Some(short), None) => format!("-{short} {value}"),
            (None, None) => value,
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(rows, "| `{}` | {} |", name.trim(), help.replace('|', "\\|"));
    }
    if !rows.is_empty() {
        let _ = writeln!(out, "| | |\n|---|---|\n{rows}");
    }
}
