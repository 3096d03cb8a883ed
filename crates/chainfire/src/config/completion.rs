//! Completion scripts for the flags of the program, made from the table of keys: `chainfire --print-completion SHELL`.
//!
//! They know every flag and what it is for, the words that a value may be where there are few, and that other values may be
//! files. Offline commands come first: they stand in front of the flags.

use std::fmt::Write as _;

use super::command_line::OTHER_FLAGS;
use super::keys::KEYS;
use super::value::Kind;

/// The words that may come first instead of a flag.
const COMMANDS: [(&str, &str); 4] = [
    ("check", "is the data of a stopped node intact, and how far does it reach"),
    ("repair", "rebuild damaged data from the other members"),
    ("recover", "a majority is lost for good: go on with what this node has"),
    ("etcd", "take the flags of etcd"),
];

/// A flag, what it is for, and the words that its value may be; none where it may be anything.
struct Flag {
    name: &'static str,
    help: &'static str,
    values: Vec<&'static str>,
}

/// The script for a shell.
pub fn script(shell: &str) -> Result<String, String> {
    match shell {
        "bash" => Ok(bash()),
        "zsh" => Ok(zsh()),
        "fish" => Ok(fish()),
        other => Err(format!("there is no completion for `{}`: bash, zsh or fish", other.escape_debug())),
    }
}

fn flags() -> impl Iterator<Item = Flag> {
    let settings = KEYS.iter().map(|key| {
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

fn bash() -> String {
    let names: Vec<String> = flags().map(|flag| format!("--{}", flag.name)).collect();
    let commands = COMMANDS.map(|(name, _)| name).join(" ");
    let mut out =
        String::from("_chainfire() {\n    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n");
    out.push_str("    case $before in\n");
    for flag in flags().filter(|flag| !flag.values.is_empty()) {
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
    out.push_str("    esac\n}\ncomplete -o filenames -F _chainfire chainfire\n");
    out
}

fn zsh() -> String {
    let mut out = String::from("#compdef chainfire\n\nlocal -a commands=(\n");
    for (name, help) in COMMANDS {
        let _ = writeln!(out, "    '{name}:{}'", quoted(help));
    }
    out.push_str(")\n_arguments \\\n");
    for Flag { name, help, values } in flags() {
        let help = quoted(help).replace('[', "\\[").replace(']', "\\]");
        let action = match (values.is_empty(), takes_value(name)) {
            (false, _) => format!(":value:({})", values.join(" ")),
            (true, true) => ":value:_files".to_owned(),
            (true, false) => String::new(),
        };
        let _ = writeln!(out, "    '--{name}[{help}]{action}' \\");
    }
    out.push_str("    '1: :{_describe command commands}'\n");
    out
}

fn fish() -> String {
    let mut out = String::new();
    for (name, help) in COMMANDS {
        let _ = writeln!(out, "complete -c chainfire -n __fish_use_subcommand -f -a {name} -d '{}'", escaped(help));
    }
    for Flag { name, help, values } in flags() {
        let value = match (values.is_empty(), takes_value(name)) {
            (false, _) => format!(" -x -a '{}'", values.join(" ")),
            (true, true) => " -r".to_owned(),
            (true, false) => String::new(),
        };
        let _ = writeln!(out, "complete -c chainfire -l {name}{value} -d '{}'", escaped(help));
    }
    out
}

fn takes_value(name: &str) -> bool {
    matches!(name, "config" | "print-completion") || KEYS.iter().any(|key| key.flag == name)
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

    #[test]
    fn every_flag_is_in_every_script() {
        for (shell, dashes) in [("bash", "--"), ("zsh", "'--"), ("fish", "-l ")] {
            let text = script(shell).unwrap();
            for name in KEYS.iter().map(|key| key.flag).chain(OTHER_FLAGS) {
                assert!(text.contains(&format!("{dashes}{name}")), "{name} for {shell}");
            }
            for (command, _) in COMMANDS {
                assert!(text.contains(command), "{command} for {shell}");
            }
        }
        assert!(script("tcsh").unwrap_err().contains("bash, zsh or fish"));
    }

    /// Asks bash what would come of some words of a command line, the last of them unfinished.
    fn completed(words: &[&str]) -> Vec<String> {
        let line = "COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _chainfire; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let text = script("bash").unwrap() + line;
        let output = Command::new("bash").args(["-c", &text]).args(words).current_dir("/").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_flags_values_and_commands() {
        assert_eq!(completed(&["bash", "chainfire", "--scr"]), ["--scrub-interval"]);
        assert_eq!(completed(&["bash", "chainfire", "--tls-api", "m"]), ["mutual"]);
        assert_eq!(completed(&["bash", "chainfire", "--bootstrap", "f"]), ["false"]);
        assert_eq!(completed(&["bash", "chainfire", "rec"]), ["recover"]);
        assert_eq!(completed(&["bash", "chainfire", "--data-dir", "va"]), ["var"]);
    }

    /// The others read theirs, where they are installed.
    #[test]
    fn zsh_and_fish_understand_theirs() {
        for shell in ["zsh", "fish"] {
            let file = std::env::temp_dir().join(format!("chainfire-{}.{shell}", std::process::id()));
            std::fs::write(&file, script(shell).unwrap()).unwrap();
            let output = Command::new(shell).arg("-n").arg(&file).output();
            std::fs::remove_file(&file).unwrap();
            if let Ok(output) = output {
                assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            }
        }
    }
}
