//! The page of the manual that lists every key, in Markdown. A program keeps it among its documents, and a test of the
//! program sees to it that it is current.

use std::fmt::Write as _;

use crate::schema::Schema;

/// Such as `docs/reference/configuration.md`.
pub fn page(schema: &Schema) -> String {
    let Schema { program, name, default_file, .. } = schema;
    let (file_name, file_variable) = (schema.file_name(), schema.file_variable());
    let mut out = format!(
        "# {name}: configuration\n\n\
         Made from the program's own table: change it there. `{program} --print-default-config` prints a complete file,\n\
         `{program} --check-config` says what differs from the defaults, who said so, and what is wrong.\n\n\
         Values come from, each overriding those before: the defaults, `{default_file}` (or the file named by\n\
         `--config` or `{file_variable}`), drop-ins `{file_name}.d/*.toml` beside it in the order of their names, environment\n\
         variables, flags. SIGHUP (`systemctl reload {program}`) reads files again: keys marked ↻ take effect, any other\n\
         key that differs is named in the log as waiting for a restart. Certificates are read again too.\n",
    );
    for (section, about) in schema.sections {
        let _ = write!(out, "\n## [{section}]\n\n{about}\n\n| key, flag, variable | default | |\n|---|---|---|\n");
        for key in schema.keys_in(section) {
            let mark = if schema.is_changeable(key) { " ↻" } else { "" };
            let help = key.help.join("<br>").replace('|', "\\|");
            let (kind, variable) = (key.kind.to_string().replace('|', "\\|"), schema.variable(key));
            let _ = writeln!(
                out,
                "| `{}`{mark}<br>`--{}`<br>`{variable}` | `{}` | {help}<br>Must be {}. |",
                key.name,
                key.flag,
                key.default,
                kind.trim_start_matches("must be ")
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::SCHEMA;

    #[test]
    fn every_key_has_its_line() {
        let page = page(&SCHEMA);
        for key in SCHEMA.keys {
            let line = format!("| `{}`", key.name);
            let variable = format!("<br>`{}` |", SCHEMA.variable(key));
            assert!(page.lines().any(|it| it.starts_with(&line) && it.contains(&variable)), "{}", key.full_name());
        }
        let marked: Vec<_> = page.lines().filter(|line| line.starts_with('|') && line.contains('↻')).collect();
        let level = "| `level` ↻<br>`--log-level`<br>`TINY_LOG_LEVEL` | `\"info\"` | how much<br>Must be error, warn, info, \
             debug, trace, off, or a list such as \"info,tiny=debug\". |";
        assert_eq!(marked, [level]);
    }
}
