//! Completion scripts for the flags of a program, made from its table of keys: `--print-completion SHELL`.
//!
//! They know every flag and what it is for, the words that a value may be where there are few, and that other values may be
//! files. Offline commands come first: they stand in front of the flags.

use std::fmt::Write as _;

use crate::command_line::OTHER_FLAGS;
use crate::schema::Schema;
use crate::value::Kind;

/// A flag, what it is for, and the words that its value may be; none where it may be anything.
struct Flag {
    name: &'static str,
    help: &'static str,
    values: Vec<&'static str>,
}

/// The script for a shell.
pub fn script(schema: &Schema, shell: &str) -> Result<String, String> {
    match shell {
        "bash" => Ok(bash(schema)),
        "zsh" => Ok(zsh(schema)),
        "fish" => Ok(fish(schema)),
        other => Err(format!("there is no completion for `{}`: bash, zsh or fish", other.escape_debug())),
    }
}

fn flags(schema: &Schema) -> impl Iterator<Item = Flag> + use<> {
    let settings = schema.keys.iter().map(|key| {
        let values = match key.kind {
            Kind::Switch => vec!["true", "false"],
            Kind::Choice(words) | Kind::AddressOr(words) => words.to_vec(),
            _ => Vec::new(),
        };
        Flag { name: key.flag, help: key.help[0], values }
    });
    let others = OTHER_FLAGS.iter().map(|name| {
        let (help, values) = match *name {
            "config" => ("read this file", vec![]),
            "check-config" => ("say whether the configuration is valid; start nothing", vec![]),
            "print-default-config" => ("print a complete, commented configuration file", vec![]),
            "print-man" => ("print a manual page", vec![]),
            "print-completion" => ("print a script for a shell", vec!["bash", "zsh", "fish"]),
            "version" => ("print the version", vec![]),
            _ => ("print a summary", vec![]),
        };
        Flag { name, help, values }
    });
    settings.chain(others)
}

fn bash(schema: &Schema) -> String {
    let names: Vec<String> = flags(schema).map(|flag| format!("--{}", flag.name)).collect();
    let commands = schema.commands.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    let program = schema.program;
    let function = format!("_{}", program.replace('-', "_"));
    let mut out = format!("{function}() {{\n");
    out.push_str("    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n    case $before in\n");
    for flag in flags(schema).filter(|flag| !flag.values.is_empty()) {
        let (name, values) = (flag.name, flag.values.join(" "));
        let _ = writeln!(out, "        --{name}) COMPREPLY=($(compgen -W '{values}' -- \"$word\")); return ;;");
    }
    out.push_str("    esac\n    case $word in\n");
    let _ = writeln!(out, "        -*) COMPREPLY=($(compgen -W '{}' -- \"$word\")) ;;", names.join(" "));
    let _ = writeln!(
        out,
        "        *) COMPREPLY=($(compgen -f -- \"$word\"))\n           \
         [ \"$COMP_CWORD\" != 1 ] || COMPREPLY+=($(compgen -W '{commands}' -- \"$word\")) ;;"
    );
    let _ = write!(out, "    esac\n}}\ncomplete -o filenames -F {function} {program}\n");
    out
}

fn zsh(schema: &Schema) -> String {
    let mut out = format!("#compdef {}\n\nlocal -a commands=(\n", schema.program);
    for (name, help) in schema.commands {
        let _ = writeln!(out, "    '{name}:{}'", quoted(help));
    }
    out.push_str(")\n_arguments \\\n");
    for Flag { name, help, values } in flags(schema) {
        let help = quoted(help).replace('[', "\\[").replace(']', "\\]");
        let action = match (values.is_empty(), takes_value(schema, name)) {
            (false, _) => format!(":value:({})", values.join(" ")),
            (true, true) => ":value:_files".to_owned(),
            (true, false) => String::new(),
        };
        let _ = writeln!(out, "    '--{name}[{help}]{action}' \\");
    }
    out.push_str("    '1: :{_describe command commands}'\n");
    out
}

fn fish(schema: &Schema) -> String {
    let program = schema.program;
    let mut out = String::new();
    for (name, help) in schema.commands {
        let _ = writeln!(out, "complete -c {program} -n __fish_use_subcommand -f -a {name} -d '{}'", escaped(help));
    }
    for Flag { name, help, values } in flags(schema) {
        let value = match (values.is_empty(), takes_value(schema, name)) {
            (false, _) => format!(" -x -a '{}'", values.join(" ")),
            (true, true) => " -r".to_owned(),
            (true, false) => String::new(),
        };
        let _ = writeln!(out, "complete -c {program} -l {name}{value} -d '{}'", escaped(help));
    }
    out
}

fn takes_value(schema: &Schema, name: &str) -> bool {
    matches!(name, "config" | "print-completion") || schema.keys.iter().any(|key| key.flag == name)
}

/// Within quotes of a shell that knows no escape in them.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

/// Within quotes of fish.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::example::SCHEMA;

    #[test]
    fn every_flag_is_in_every_script() {
        for (shell, dashes) in [("bash", "--"), ("zsh", "'--"), ("fish", "-l ")] {
            let text = script(&SCHEMA, shell).unwrap();
            for name in SCHEMA.keys.iter().map(|key| key.flag).chain(OTHER_FLAGS) {
                assert!(text.contains(&format!("{dashes}{name}")), "{name} for {shell}");
            }
            for (command, _) in SCHEMA.commands {
                assert!(text.contains(command), "{command} for {shell}");
            }
        }
        assert!(script(&SCHEMA, "tcsh").unwrap_err().contains("bash, zsh or fish"));
    }

    /// Asks bash what would come of some words of a command line, the last of them unfinished.
    fn completed(words: &[&str]) -> Vec<String> {
        let line = "COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _tiny_store; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let text = script(&SCHEMA, "bash").unwrap() + line;
        let output = Command::new("bash").args(["-c", &text]).args(words).current_dir("/").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_flags_values_and_commands() {
        assert_eq!(completed(&["bash", "tiny-store", "--da"]), ["--data-dir"]);
        assert_eq!(completed(&["bash", "tiny-store", "--gossip-addr", "o"]), ["off"]);
        assert_eq!(completed(&["bash", "tiny-store", "--sync", "f"]), ["false"]);
        assert_eq!(completed(&["bash", "tiny-store", "reb"]), ["rebuild"]);
        assert_eq!(completed(&["bash", "tiny-store", "--data-dir", "va"]), ["var"]);
    }

    /// The others read theirs, where they are installed.
    #[test]
    fn zsh_and_fish_understand_theirs() {
        for shell in ["zsh", "fish"] {
            let file = std::env::temp_dir().join(format!("tiny-{}.{shell}", std::process::id()));
            std::fs::write(&file, script(&SCHEMA, shell).unwrap()).unwrap();
            let output = Command::new(shell).arg("-n").arg(&file).output();
            std::fs::remove_file(&file).unwrap();
            if let Ok(output) = output {
                assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            }
        }
    }
}
