//! Texts for people, made from the table of keys: the help, the default configuration, what a check answers.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::layers::Layers;
use crate::schema::Schema;

/// A complete, commented configuration file that says nothing but the defaults.
pub fn default_config(schema: &Schema) -> String {
    let mut out = format!(
        "# {}. Every setting there is, at its default; a file needs only those that differ.\n\
         # Put changes into {}.d/NAME.toml beside this file to keep it as it was shipped.\n\
         # Environment variables ({}<SECTION>_<KEY>) and flags override files.\n",
        schema.name,
        schema.file_name(),
        schema.variable_prefix,
    );
    for (section, about) in schema.sections {
        let explained_above = schema.explained_above == Some(section);
        let _ = writeln!(out, "\n# {about}");
        if explained_above {
            for key in schema.keys_in(section) {
                let _ = writeln!(out, "# {} - {}", key.name, key.help.join("\n#   "));
            }
        }
        let _ = writeln!(out, "[{section}]");
        for key in schema.keys_in(section) {
            if !explained_above {
                let _ = writeln!(out, "# {}", key.help.join("\n# "));
            }
            let _ = writeln!(out, "{} = {}", key.name, key.default);
        }
    }
    out
}

/// What `--help` prints.
pub fn help(schema: &Schema) -> String {
    let mut out = String::from(schema.help_head);
    let (section, name) = schema.example;
    let example = schema.find(section, name).expect("it is in the table");
    let _ = writeln!(
        out,
        "
Settings come from, each overriding those before:
  1. the defaults, in parentheses below
  2. the file {}, or the one named by --config or {}
  3. drop-in files, FILE.d/*.toml, in the order of their names
  4. environment variables: {}<SECTION>_<KEY>, such as {}
  5. flags: --flag VALUE or --flag=VALUE",
        schema.default_file,
        schema.file_variable(),
        schema.variable_prefix,
        schema.variable(example),
    );
    out.push_str(OTHER_FLAGS);
    for (section, about) in schema.sections {
        let _ = write!(out, "\n[{section}] {about}\n");
        for key in schema.keys_in(section) {
            let _ = writeln!(out, "  --{} ({})\n      {}", key.flag, key.default, key.help[0]);
        }
    }
    out
}

/// See [`Reading::checked`](crate::command_line::Reading::checked): what is not as it is by default, and who said so.
pub(crate) fn checked(layers: &Layers, files: &[PathBuf], warnings: &[String]) -> String {
    let mut out = String::from("the configuration is valid\n");
    for file in files {
        let _ = writeln!(out, "read: {}", file.display());
    }
    let mut differing = layers.differing().peekable();
    if differing.peek().is_none() {
        out.push_str("every setting is at its default\n");
    }
    for (name, value, origin) in differing {
        let _ = writeln!(out, "{name} = {value} ({origin})");
    }
    for warning in warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

const OTHER_FLAGS: &str = "
Other flags:
  --config FILE            read this file
  --check-config           say whether the configuration is valid, and what in it is not a default; start nothing
  --print-default-config   print a complete, commented configuration file
  --print-man[=SECTION]    print the manual page of the program (8) or of its configuration file (5)
  --print-completion SHELL print a script with which bash, zsh or fish completes these flags
  --version, -V            print the version
  --help, -h               print this
";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::example::SCHEMA;
    use crate::file;

    #[test]
    fn the_help_names_every_flag_and_where_settings_come_from() {
        let help = help(&SCHEMA);
        assert!(help.starts_with(SCHEMA.help_head));
        for key in SCHEMA.keys {
            assert!(help.contains(&format!("--{} ({})\n", key.flag, key.default)), "{}", key.flag);
        }
        for flag in crate::command_line::OTHER_FLAGS {
            assert!(help.contains(&format!("\n  --{flag}")), "{flag}");
        }
        for part in ["/etc/tiny-store-of-tests/tiny.toml", "TINY_CONFIG", "such as TINY_STORAGE_DATA_DIR\n"] {
            assert!(help.contains(part), "{part}");
        }
    }

    #[test]
    fn a_check_names_what_differs_from_the_defaults_and_nothing_else() {
        let mut layers = Layers::new(&SCHEMA);
        let mut check = |text: &str| {
            file::parse(Path::new("c.toml"), text, &mut layers).unwrap();
            checked(&layers, &[], &[])
        };
        let default = "the configuration is valid\nevery setting is at its default\n";
        assert_eq!(check(""), default);
        assert_eq!(check(&default_config(&SCHEMA)), default);
        let other = check("[storage]\ndata_dir = \"/var/lib/tiny\"\nsync = false\n");
        assert_eq!(other, "the configuration is valid\nstorage.sync = false (c.toml:3)\n");
    }

    #[test]
    fn the_default_configuration_reads_as_the_defaults() {
        let text = default_config(&SCHEMA);
        let mut layers = Layers::new(&SCHEMA);
        file::parse(Path::new("c.toml"), &text, &mut layers).unwrap();
        let defaults = Layers::new(&SCHEMA);
        for key in SCHEMA.keys {
            assert_eq!(layers.value(key), defaults.value(key), "{}", key.full_name());
            assert_ne!(layers.origin(key.section, key.name), defaults.origin(key.section, key.name), "{}", key.name);
        }
        assert!(text.contains("\n# the data folder\n# It's made if there is none.\ndata_dir = \"/var/lib/tiny\"\n"));
        let together = "# gossip_addr - where it gossips\n[network]\naddr = \"127.0.0.1:7\"\ngossip_addr = \"auto\"\n";
        assert!(text.contains(together), "{text}");
    }
}
