//! The program `placement-driver`; its exit codes are those of every program with a node ([`node::program`]). With `recover` as
//! its first argument it runs no member, and mends a stopped one.

use std::process::ExitCode;

use node::program;
use placement::{config, recover, server};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == recover::COMMAND) {
        return match recover::run(words, settings::source::environment()) {
            Ok(text) => {
                program::print(&text);
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("placement-driver {}: {why}", recover::COMMAND);
                ExitCode::FAILURE
            }
        };
    }
    program::main(&config::SCHEMA, "placement", config::validate, |settings| settings.node.certificates(), server::run)
}
