//! Texts made from the definition of the command line: those of [`cli::manual`].

use clap::CommandFactory as _;
use cli::manual;

use crate::args::{Cli, ManArgs};
use crate::failure::Failure;

pub fn run(args: ManArgs) -> Result<(), Failure> {
    if args.markdown {
        return manual::print(markdown().as_bytes());
    }
    manual::man(Cli::command(), "Chainfire", args.dir)
}

/// docs/reference/cli.md
pub fn markdown() -> String {
    manual::markdown(Cli::command(), "crates/cli/src/args.rs")
}
