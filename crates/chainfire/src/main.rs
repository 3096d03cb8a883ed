//! The program `chainfire`; under the name `etcd`, or with `etcd` as its first argument, it takes etcd's flags. With the name
//! of an offline command as its first argument, or under the name `rocksdb_ldb`, it runs no node ([`offline`]).
//!
//! Exit codes: 0 when it stopped in good order or printed what was asked for, 1 when it could not start or understand
//! (one line on standard error says why, and ends with a code; nothing was changed), 70 when a running node could not go on.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use chainfire::config::{Request, Settings, Source};
use chainfire::start_error::StartError;
use chainfire::{offline, server};
use settings::command_line::Environment;

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
    // Variables that are not text are not ours.
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let asked = Source::new(&program, words, environment).and_then(|source| Ok((source.read()?, source)));
    let done = asked.map_err(StartError::settings).and_then(|(request, source)| match request {
        Request::Print(text) => {
            print(&text);
            Ok(())
        }
        Request::Run(settings) => run(*settings, source),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
            node::logging::refuse(&name, &why.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings, source: Source) -> Result<(), StartError> {
    node::logging::start("chainfire", &settings.log_level).map_err(StartError::settings)?;
    for warning in &settings.warnings {
        tracing::warn!(target: "chainfire_config", "{warning}");
    }
    server::run(settings, source)
}

/// Whoever closed the pipe has read enough.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
