//! Completion scripts, manual pages, and the reference in Markdown.

use std::io::Write as _;
use std::path::PathBuf;

use clap::CommandFactory as _;
use cli::failure::Failure;

use crate::args::Cli;

pub fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flaredb-client", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

pub fn run(folder: Option<PathBuf>, as_markdown: bool) -> Result<(), Failure> {
    if as_markdown {
        return Ok(std::io::stdout().write_all(markdown().as_bytes())?);
    }
    let mut command = Cli::command().disable_help_subcommand(true);
    let Some(folder) = folder else {
        command.build();
        let mut page = Vec::new();
        clap_mangen::Man::new(command).manual("FlareDB").render(&mut page)?;
        return Ok(std::io::stdout().write_all(&page)?);
    };
    let written = std::fs::create_dir_all(&folder).and_then(|()| clap_mangen::generate_to(command, &folder));
    written.map_err(|error| Failure::local(format!("{}: manual pages cannot be written: {error}", folder.display())))
}

/// docs/reference/flaredb-cli.md
pub fn markdown() -> String {
    cli::manual::markdown(&mut Cli::command().disable_help_subcommand(true), "crates/cli/src/flaredb/args.rs")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// `UPDATE=1 cargo test --release --workspace reference` writes it anew.
    #[test]
    fn reference_is_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/flaredb-cli.md");
        if std::env::var_os("UPDATE").is_some() {
            return fs::write(file, markdown()).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == markdown(), "{} is not current; UPDATE=1 writes it anew", file.display());
    }
}
