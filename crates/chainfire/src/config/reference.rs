//! Files that are made from the table of keys, and the tests that they are current. `UPDATE=1` writes them anew:
//! `UPDATE=1 cargo test --release -p chainfire reference`.

use std::fmt::Write as _;
use std::path::Path;

use super::change::CHANGEABLE;
use super::default_config;
use super::keys::{KEYS, SECTIONS};

/// docs/reference/configuration.md
fn page() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         Made from the program's own table: change it there. `chainfire --print-default-config` prints a complete file,\n\
         `chainfire --check-config` says what is in force, who said so, and what is wrong.\n\n\
         Values come from, each overriding those before: the defaults, `/etc/centra-cloud/chainfire.toml` (or the file named by\n\
         `--config` or `CHAINFIRE_CONFIG`), drop-ins `chainfire.toml.d/*.toml` beside it in the order of their names, environment\n\
         variables, flags. SIGHUP (`systemctl reload chainfire`) reads files again: keys marked ↻ take effect, any other\n\
         key that differs is named in the log as waiting for a restart. Certificates are read again too.\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(out, "\n## [{section}]\n\n{about}\n\n| key, flag, variable | default | |\n|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let mark = if CHANGEABLE.contains(&key.full_name().as_str()) { " ↻" } else { "" };
            let help = key.help.join("<br>").replace('|', "\\|");
            let (kind, variable) = (key.kind.to_string().replace('|', "\\|"), key.variable());
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

#[test]
fn reference_of_the_configuration_is_current() {
    current("docs/reference/configuration.md", &page());
}

/// What the package installs says nothing but the defaults; what the package itself needs is in the unit.
#[test]
fn reference_file_that_is_shipped_is_current() {
    current("packaging/etc/centra-cloud/chainfire.toml", &default_config());
}

/// Looks into it as the runbook does.
#[test]
fn reference_file_that_is_shipped_shows_its_certificates() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/etc/centra-cloud/chainfire.toml");
    let shown = std::process::Command::new("sh")
        .args(["-c", r#"grep -A5 '\[network.tls\]' "$1""#, "sh"])
        .arg(&shipped)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for key in ["cert_file", "key_file", "ca_file"] {
        assert!(shown.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} in\n{shown}");
    }
}

/// Compares a file of the repository with what it should be, or writes it.
pub(crate) fn current(path: &str, wanted: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{path} is not current (line {}); UPDATE=1 cargo test --release -p chainfire reference",
        differs.map_or_else(|| "the last".to_owned(), |line| (line + 1).to_string())
    );
}
