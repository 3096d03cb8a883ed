//! The program `placement-driver`; its exit codes are those of every program with a node ([`node::program`]).

use std::process::ExitCode;

use placement::{config, server};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    node::program::main(&config::SCHEMA, "placement", config::validate, server::run)
}
