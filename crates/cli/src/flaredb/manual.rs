//! Texts made from the definition of the command line: those of [`cli::manual`].

use std::path::PathBuf;

use clap::CommandFactory as _;
use cli::failure::Failure;
use cli::manual;

use crate::args::Cli;

pub fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    manual::completion(Cli::command(), shell)
}

pub fn run(folder: Option<PathBuf>, as_markdown: bool) -> Result<(), Failure> {
    if as_markdown {
        return manual::print(markdown().as_bytes());
    }
    manual::man(Cli::command(), "FlareDB", folder)
}

/// docs/reference/flaredb-client.md
pub fn markdown() -> String {
    manual::markdown(Cli::command(), "crates/cli/src/flaredb/args.rs")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// `UPDATE=1 cargo test --release --workspace reference` writes it anew.
    #[test]
    fn reference_is_current() {
        let file = base::crate_folder!().join("../../docs/reference/flaredb-client.md");
        if std::env::var_os("UPDATE").is_some() {
            return fs::write(file, markdown()).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == markdown(), "{} is not current; UPDATE=1 writes it anew", file.display());
    }
}
