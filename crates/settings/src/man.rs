//! Manual pages, made from the table of keys: one of the program in section 8, such as `chainfire(8)`, and one of its
//! configuration file in section 5, `chainfire.toml(5)`.
//!
//! They are texts in roff's `man` macros, which every `man` understands. What the program's help says stands here too, in
//! the order that manual pages have.

use std::fmt::Write as _;

use crate::schema::Schema;

/// The page of a section of the manual, 8 or 5.
pub fn page(schema: &Schema, section: &str) -> Result<String, String> {
    match section {
        "8" => Ok(program(schema)),
        "5" => Ok(file(schema)),
        other => Err(format!("there is no page in section `{other}`: 8 is the program, 5 its configuration file")),
    }
}

fn program(schema: &Schema) -> String {
    let (program, manual) = (escaped(schema.program), &schema.manual);
    let (default_file, variable_prefix) = (schema.default_file, schema.variable_prefix);
    let mut out = head(schema, schema.program, 8, schema.title);
    let _ = write!(out, ".SH SYNOPSIS\n.B {program}\n.RI [ FLAGS ]\n");
    for (words, behind) in manual.also_called {
        let behind = if behind.contains(' ') { format!("\"{behind}\"") } else { behind.to_string() };
        let _ = write!(out, ".br\n.B {words}\n.RI [ {behind} ]\n");
    }
    let _ = write!(
        out,
        ".SH DESCRIPTION\n{}\n.PP\nSettings come from, each overriding those before: the defaults; the file\n\
         .I {default_file}\nor the one named by\n.B \\-\\-config\nor {}; drop-in files,\n.IR FILE .d/*.toml,\n\
         in the order of their names; environment variables, {variable_prefix}SECTION_KEY; flags.\n.SH FLAGS\n",
        manual.description,
        schema.file_variable(),
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
    for (section, about) in schema.sections {
        let _ = writeln!(out, ".SS [{section}]\n{}", line(about));
        for key in schema.keys_in(section) {
            let flag = escaped(key.flag);
            let default = escaped(key.default);
            let _ = writeln!(out, ".TP\n.BI \\-\\-{flag} \" VALUE\"\n{} Default: {default}.", sentence(key.help[0]));
        }
    }
    let _ = write!(
        out,
        ".SH EXIT STATUS\n.TP\n.B 0\nIt stopped in good order, or printed what was asked for.\n\
         .TP\n.B 1\nIt could not start or understand; one line on standard error says why and ends with a code, and \
         nothing was changed.\n.TP\n.B 70\nA running node could not go on.\n.SH FILES\n.I {default_file}\n"
    );
    for file in manual.files {
        let _ = write!(out, ".br\n.I {file}\n");
    }
    let _ = write!(out, ".SH SEE ALSO\n.BR {} (5)", escaped(schema.file_name()));
    for (page, section) in manual.see_also {
        let _ = write!(out, ",\n.BR {page} ({section})");
    }
    out.push('\n');
    out
}

fn file(schema: &Schema) -> String {
    let (program, name) = (escaped(schema.program), escaped(schema.file_name()));
    let mut out = head(schema, schema.file_name(), 5, &format!("configuration of {program}(8)"));
    let _ = write!(
        out,
        ".SH DESCRIPTION\nA TOML file that names what differs from the defaults. What is not understood is refused, with \
         its line and what was probably meant;\n.B {program} \\-\\-check\\-config\nsays so without starting anything. \
         Files in\n.I {name}.d/\nbeside it are read after it, in the order of their names, and override it. Each key also \
         has a flag and an environment variable.\n"
    );
    for (section, about) in schema.sections {
        let _ = writeln!(out, ".SH [{section}]\n{}", line(about));
        for key in schema.keys_in(section) {
            let default = escaped(key.default).replace('"', "\\(dq");
            let _ = writeln!(out, ".TP\n.BR {} \" = {default}\"", escaped(key.name));
            for help in key.help {
                let _ = writeln!(out, "{}\n.br", sentence(help));
            }
            let _ = writeln!(out, "\\-\\-{}, {}", escaped(key.flag), schema.variable(key));
        }
    }
    let _ = write!(out, ".SH SEE ALSO\n.BR {program} (8)\n");
    out
}

/// The first lines of the page `page`, which is about `title`.
fn head(schema: &Schema, page: &str, section: u8, title: &str) -> String {
    let Schema { name, version, .. } = schema;
    let (upper, page) = (escaped(&page.to_uppercase()), escaped(page));
    format!(".TH {upper} {section} \"\" \"{name} {version}\" \"{name}\"\n.SH NAME\n{page} \\- {title}\n")
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
    use crate::example::SCHEMA;

    #[test]
    fn every_key_stands_in_both_pages() {
        let (program, file) = (page(&SCHEMA, "8").unwrap(), page(&SCHEMA, "5").unwrap());
        for key in SCHEMA.keys {
            assert!(program.contains(&format!(".BI \\-\\-{} ", escaped(key.flag))), "{}", key.flag);
            assert!(
                file.contains(&format!(".BR {} ", escaped(key.name))) && file.contains(&SCHEMA.variable(key)),
                "{}",
                key.name
            );
        }
        for part in [
            ".TH TINY\\-STORE 8 \"\" \"Tiny 1.2.3\" \"Tiny\"\n.SH NAME\ntiny\\-store \\- store of a few things\n",
            "\n.br\n.B tiny\\-store rebuild\n.RI [ \"MORE FLAGS\" ]\n",
            "\nIt keeps things.\n",
            "\n.br\n.I /var/lib/tiny\n",
            "\n.BR tiny.toml (5),\n.BR ls (1)\n",
        ] {
            assert!(program.contains(part), "{part}");
        }
        for text in [&program, &file] {
            assert!(text.starts_with(".TH ") && text.lines().all(|line| !line.starts_with('\'')), "{text}");
        }
        assert!(page(&SCHEMA, "1").unwrap_err().contains("8 is the program"));
        assert_eq!(line(".hidden"), "\\&.hidden");
        assert_eq!(sentence("a b"), "A b.");
    }

    /// Where `man` is installed, it has nothing to complain of.
    #[test]
    fn man_understands_them() {
        for section in ["8", "5"] {
            let file = std::env::temp_dir().join(format!("tiny-{}.{section}", std::process::id()));
            std::fs::write(&file, page(&SCHEMA, section).unwrap()).unwrap();
            let output =
                std::process::Command::new("man").args(["--warnings", "-l", "-Tutf8", "-Z"]).arg(&file).output();
            std::fs::remove_file(&file).unwrap();
            if let Ok(output) = output {
                assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}
