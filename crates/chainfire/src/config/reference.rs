//! Files that are made from the table of keys, and the tests that they are current. `UPDATE=1` writes them anew:
//! `UPDATE=1 cargo test --release -p chainfire reference`.

use std::path::Path;

use settings::help::default_config;
use settings::reference::page;

use super::schema::SCHEMA;

#[test]
fn reference_of_the_configuration_is_current() {
    current("docs/reference/configuration.md", &page(&SCHEMA));
}

/// What the package installs says nothing but the defaults; what the package itself needs is in the unit.
#[test]
fn reference_file_that_is_shipped_is_current() {
    current("packaging/etc/centra-cloud/chainfire.toml", &default_config(&SCHEMA));
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
