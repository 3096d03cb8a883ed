//! Files that are made from the table of keys, and the tests that they are current:
//! `UPDATE=1 cargo test --release --workspace reference` writes them anew.

#[path = "../../settings/src/current.rs"]
mod current;

use settings::help::default_config;
use settings::reference::page;

use crate::config::SCHEMA;

#[test]
fn reference_of_the_configuration_is_current() {
    current::current("docs/reference/placement-driver-configuration.md", &page(&SCHEMA));
}

/// What the package installs says nothing but the defaults.
#[test]
fn reference_file_that_is_shipped_is_current() {
    let shipped = default_config(&SCHEMA);
    current::current("packaging/etc/centra-cloud/placement-driver.toml", &shipped);
    // Looked into as the runbook does.
    let section = shipped.split("\n[tls]\n").nth(1).expect("it has the section");
    for key in ["cert_file = ", "key_file = ", "ca_file = "] {
        assert!(section.lines().take(5).any(|line| line.starts_with(key)), "{key} in\n{section}");
    }
}
