//! Files that are made from the table of keys, and the tests that they are current. `UPDATE=1` writes them anew:
//! `UPDATE=1 cargo test --release -p chainfire reference`.

#[path = "../../../settings/src/current.rs"]
mod current;

use settings::help::default_config;
use settings::reference::page;

pub(crate) use current::current;

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
    let shipped = base::crate_folder!().join("../../packaging/etc/centra-cloud/chainfire.toml");
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
