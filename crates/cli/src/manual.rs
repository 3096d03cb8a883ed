//! Texts made from the definition of a command line: completion scripts, manual pages, and the reference in Markdown.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Arg, Command};

use crate::failure::Failure;

/// A shell's script for a program of ours.
pub fn completion(mut command: Command, shell: clap_complete::Shell) -> Result<(), Failure> {
    let (mut script, name) = (Vec::new(), command.get_name().to_owned());
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&script)
}

/// Prints a program's page, or writes one for each of its commands.
pub fn man(command: Command, manual: &str, folder: Option<PathBuf>) -> Result<(), Failure> {
    let command = command.disable_help_subcommand(true);
    let Some(folder) = folder else {
        let (mut page, mut built) = (Vec::new(), command);
        built.build();
        clap_mangen::Man::new(built).manual(manual).render(&mut page)?;
        return print(&page);
    };
    let write = || {
        fs::create_dir_all(&folder)?;
        // Globals stand in the page of the program; in each of forty pages they would hide what is the command's own.
        clap_mangen::generate_to(command, &folder)
    };
    write().map_err(|error| Failure::local(format!("{}: manual pages cannot be written: {error}", folder.display())))
}

/// On standard output.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout().write_all(text).map_err(Failure::from)
}

/// All commands as one page. `source`: where the definition stands.
pub fn markdown(command: Command, source: &str) -> String {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let name = command.get_name();
    let mut out = format!("# {name}\n\n<!-- Made by `{name} man --markdown`; change {source} instead. -->\n\n");
    let _ = writeln!(out, "{}.\n", command.get_about().map(ToString::to_string).unwrap_or_default());
    let _ = writeln!(out, "## Options of every command\n");
    options(&mut out, command.get_arguments().filter(|arg| arg.is_global_set()));
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(out, "```\n{after}\n```\n");
    }
    for sub in visible(&command) {
        section(&mut out, sub, "");
    }
    out
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

/// `above`: the words before this command's, without the program's.
fn section(out: &mut String, command: &Command, above: &str) {
    let name = format!("{above}{}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    if command.has_subcommands() {
        for sub in visible(command) {
            section(out, sub, &format!("{name} "));
        }
        return;
    }
    let _ = writeln!(out, "## {name}\n\n{about}.\n");
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
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if let Some(variable) = arg.get_env().and_then(|name| name.to_str())
            && !help.contains("[env: ")
        {
            let _ = write!(help, " [env: {variable}]");
        }
        let _ = writeln!(rows, "| `{}` | {} |", name.trim(), help.replace('|', "\\|"));
    }
    if !rows.is_empty() {
        let _ = writeln!(out, "| | |\n|---|---|\n{rows}");
    }
}
