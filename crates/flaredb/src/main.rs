//! The program `flaredb`; its exit codes are those of every program with a node ([`node::program`]).

use std::process::ExitCode;

use flaredb::{config, server};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    node::program::main(
        &config::SCHEMA,
        "flaredb",
        config::validate,
        |settings| settings.node.certificates(),
        server::run,
    )
}
