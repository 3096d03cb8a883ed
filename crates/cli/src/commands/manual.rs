//! Texts made from the definition of the command line: completion scripts, manual pages, and the reference in Markdown.

use std::fs;
use std::io::Write as _;

use clap::{Command, CommandFactory as _};

use crate::args::{Cli, ManArgs};
use crate::failure::Failure;

pub fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "chainfire-client", &mut script);
    print(&script)
}

pub fn run(args: ManArgs) -> Result<(), Failure> {
    if args.markdown {
        return print(markdown().as_bytes());
    }
    let Some(folder) = args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(built()).manual("Chainfire").render(&mut page)?;
        return print(&page);
    };
    let write = || {
        fs::create_dir_all(&folder)?;
        // Globals stand in the page of the program; in each of forty pages they would hide what is the command's own.
        clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &folder)
    };
    write().map_err(|error| Failure::local(format!("{}: manual pages cannot be written: {error}", folder.display())))
}

fn print(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout().write_all(text).map_err(Failure::from)
}

fn built() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// docs/reference/cli.md
pub fn markdown() -> String {
    cli::manual::markdown(&mut Cli::command().disable_help_subcommand(true), "crates/cli/src/args.rs")
}
