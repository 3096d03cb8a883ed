//! The program `chainfire`; under the name `etcd`, or with `etcd` as its first argument, it takes etcd's flags. With the name
//! of an offline command as its first argument, or under the name `rocksdb_ldb`, it runs no node ([`offline`]).
//!
//! Exit codes: 0 when it stopped in good order or printed what was asked for, 1 when it could not start or understand
//! (one line on standard error says why, and ends with a code; nothing was changed), 70 when a running node could not go on.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use chainfire::config::{Request, Settings, Source};
use chainfire::{offline, server};
use node::program;
use node::start_error::StartError;
use settings::source;

// Freed memory goes back within seconds, and no huge pages are cleared for buffers that live for a request.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    if let Some(ended) = offline::run(&program, &words) {
        return ExitCode::from(ended);
    }
    let asked = Source::new(&program, words, source::environment()).and_then(|source| Ok((source.read()?, source)));
    let ended = asked.map_err(StartError::settings).and_then(|(request, source)| match request {
        Request::Print(text) => {
            program::print(&text);
            Ok(())
        }
        Request::Check { settings, answer } => {
            settings.node.certificates()?;
            program::print(&answer);
            Ok(())
        }
        Request::Run(settings) => run(*settings, source),
    });
    let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    program::end(&name, ended)
}

fn run(settings: Settings, source: Source) -> Result<(), StartError> {
    node::logging::start("chainfire", &settings.log_level).map_err(StartError::settings)?;
    node::reload::warn(&settings.warnings);
    program::open_many_files();
    server::run(settings, source)
}
