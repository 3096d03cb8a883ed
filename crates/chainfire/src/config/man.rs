//! Manual pages, made from the table of keys: `chainfire(8)` and `chainfire.toml(5)`.
//!
//! They are texts in roff's `man` macros, which every `man` understands. What the program's help says stands here too, in
//! the order that manual pages have.

use std::fmt::Write as _;

use super::keys::{KEYS, Key, SECTIONS};

const PACKAGE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The page of a section of the manual, 8 or 5.
pub fn page(section: &str) -> Result<String, String> {
    match section {
        "8" => Ok(program()),
        "5" => Ok(file()),
        other => Err(format!("there is no page in section `{other}`: 8 is the program, 5 its configuration file")),
    }
}

fn program() -> String {
    let mut out = head("CHAINFIRE", 8, "chainfire \\- replicated key-value store that speaks the API of etcd");
    out.push_str(
        ".SH SYNOPSIS\n.B chainfire\n.RI [ FLAGS ]\n.br\n.B chainfire etcd\n.RI [ \"etcd's flags\" ]\n\
         .SH DESCRIPTION\nOne node of a cluster. It runs in the foreground and logs to standard output; SIGTERM stops it in \
         good order, SIGHUP makes it read its configuration and its certificates again.\n.PP\nSettings come from, each overriding those before: \
         the defaults; the file\n.I /etc/centra-cloud/chainfire.toml\nor the one named by\n.B \\-\\-config\nor \
         CHAINFIRE_CONFIG; drop-in files,\n.IR FILE .d/*.toml,\nin the order of their names; environment variables, \
         CHAINFIRE_SECTION_KEY; flags.\n.SH FLAGS\n",
    );
    for (flag, help) in [
        ("config FILE", "read this file"),
        ("check-config", "say whether the configuration is valid, and what in it is not a default; start nothing"),
        ("print-default-config", "print a complete, commented configuration file"),
        ("print-man[=SECTION]", "print this page, or with 5 that of the configuration file"),
        ("print-completion SHELL", "print a script with which bash, zsh or fish completes these flags"),
        ("version", "print the version"),
        ("help", "print a summary"),
    ] {
        let _ = writeln!(out, ".TP\n.B \\-\\-{}\n{}", escaped(flag), sentence(help));
    }
    for (section, about) in SECTIONS {
        let _ = writeln!(out, ".SS [{section}]\n{}", line(about));
        for key in in_section(section) {
            let flag = escaped(key.flag);
            let default = escaped(key.default);
            let _ = writeln!(out, ".TP\n.BI \\-\\-{flag} \" VALUE\"\n{} Default: {default}.", sentence(key.help[0]));
        }
    }
    out.push_str(
        ".SH EXIT STATUS\n.TP\n.B 0\nIt stopped in good order, or printed what was asked for.\n.TP\n.B 1\nIt could not start \
         or understand; one line on standard error says why and ends with a code, and nothing was changed.\n.TP\n.B 70\nA running node could not \
         go on.\n.SH FILES\n.I /etc/centra-cloud/chainfire.toml\n.br\n.I /etc/centra-cloud/certs/\n.br\n.I \
         /var/lib/chainfire\n.br\n.I /usr/share/chainfire/scripts/generate\\-dev\\-certs.sh\n.SH SEE ALSO\n.BR chainfire.toml (5),\n.BR chainfire-client (1)\n",
    );
    out
}

fn file() -> String {
    let mut out = head("CHAINFIRE.TOML", 5, "chainfire.toml \\- configuration of chainfire(8)");
    out.push_str(
        ".SH DESCRIPTION\nA TOML file that names what differs from the defaults. What is not understood is refused, with \
         its line and what was probably meant;\n.B chainfire \\-\\-check\\-config\nsays so without starting anything. Files in\n\
         .I chainfire.toml.d/\nbeside it are read after it, in the order of their names, and override it. Each key also has \
         a flag and an environment variable.\n",
    );
    for (section, about) in SECTIONS {
        let _ = writeln!(out, ".SH [{section}]\n{}", line(about));
        for key in in_section(section) {
            let _ =
                writeln!(out, ".TP\n.BR {} \" = {}\"", escaped(key.name), escaped(key.default).replace('"', "\\(dq"));
            for help in key.help {
                let _ = writeln!(out, "{}\n.br", sentence(help));
            }
            let _ = writeln!(out, "\\-\\-{}, {}", escaped(key.flag), key.variable());
        }
    }
    out.push_str(".SH SEE ALSO\n.BR chainfire (8)\n");
    out
}

fn in_section(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section)
}

fn head(title: &str, section: u8, name: &str) -> String {
    format!(".TH {title} {section} \"\" \"Chainfire {PACKAGE_VERSION}\" \"Chainfire\"\n.SH NAME\n{name}\n")
}

/// A summary of the table as a sentence: with a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if text.ends_with(['.', '!', '?', ']']) { "" } else { "." };
    line(&format!("{first}{}{end}", chars.as_str()))
}

/// A line of text that roff takes for text.
fn line(text: &str) -> String {
    let text = escaped(text);
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_in_both_pages() {
        let (program, file) = (page("8").unwrap(), page("5").unwrap());
        for key in KEYS {
            assert!(program.contains(&format!(".BI \\-\\-{} ", escaped(key.flag))), "{}", key.flag);
            assert!(
                file.contains(&format!(".BR {} ", escaped(key.name))) && file.contains(&key.variable()),
                "{}",
                key.name
            );
        }
        assert!(program.contains("SIGHUP makes it read its configuration and its certificates again"));
        for text in [&program, &file] {
            assert!(text.starts_with(".TH ") && text.lines().all(|line| !line.starts_with('\'')), "{text}");
        }
        assert!(page("1").unwrap_err().contains("8 is the program"));
        assert_eq!(line(".hidden"), "\\&.hidden");
        assert_eq!(sentence("a b"), "A b.");
    }

    /// Where `man` is installed, it has nothing to complain of.
    #[test]
    fn man_understands_them() {
        for section in ["8", "5"] {
            let file = std::env::temp_dir().join(format!("chainfire-{}.{section}", std::process::id()));
            std::fs::write(&file, page(section).unwrap()).unwrap();
            let output =
                std::process::Command::new("man").args(["--warnings", "-l", "-Tutf8", "-Z"]).arg(&file).output();
            std::fs::remove_file(&file).unwrap();
            if let Ok(output) = output {
                assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}
