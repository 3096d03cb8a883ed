//! The reference of a command line in Markdown, made from its definition.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// `source`: the file to change instead.
pub fn markdown(command: &mut Command, source: &str) -> String {
    command.build();
    let program = command.get_name().to_owned();
    let mut out = format!("# {program}\n\n<!-- Made by `{program} man --markdown`; change {source} instead. -->\n\n");
    let _ = writeln!(out, "{}.\n", command.get_about().map(ToString::to_string).unwrap_or_default());
    let _ = writeln!(out, "## Options of every command\n");
    options(&mut out, command.get_arguments().filter(|arg| arg.is_global_set()));
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(out, "```\n{after}\n```\n");
    }
    for sub in visible(command) {
        section(&mut out, sub, "");
    }
    out
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

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
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(rows, "| `{}` | {} |", name.trim(), help.replace('|', "\\|"));
    }
    if !rows.is_empty() {
        let _ = writeln!(out, "| | |\n|---|---|\n{rows}");
    }
}
