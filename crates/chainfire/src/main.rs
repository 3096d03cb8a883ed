//! The program `chainfire`; under the name `etcd`, or with `etcd` as its first argument, it takes etcd's flags.
//!
//! Exit codes: 0 when it stopped in good order or printed what was asked for, 1 when it could not start or understand
//! (one line on standard error says why; nothing was changed), 70 when a running node could not go on.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use chainfire::config::{Environment, Request, Settings, command_line};
use chainfire::{etcd_flags, server};

// Freed memory goes back within seconds, and no huge pages are cleared for buffers that live for a request.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    let done = understand(&program, words.collect()).and_then(|request| match request {
        Request::Print(text) => {
            print(&text);
            Ok(())
        }
        Request::Run(settings) => run(*settings),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}: {why}", Path::new(&program).file_name().unwrap_or_default().display());
            ExitCode::FAILURE
        }
    }
}

fn understand(program: &OsString, words: Vec<OsString>) -> Result<Request, String> {
    let text = |word: OsString| word.into_string().map_err(|word| format!("{word:?} is not valid UTF-8"));
    let mut arguments = words.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    // Variables that are not text are not ours.
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let called_etcd = Path::new(program).file_name().is_some_and(|name| name == "etcd");
    if called_etcd {
        return etcd_flags::understand(&arguments, &environment);
    }
    if arguments.first().is_some_and(|word| word == "etcd") {
        arguments.remove(0);
        return etcd_flags::understand(&arguments, &environment);
    }
    command_line::understand(&arguments, &environment)
}

fn run(settings: Settings) -> Result<(), String> {
    node::logging::start(&settings.log_level)?;
    for warning in &settings.warnings {
        tracing::warn!(target: "chainfire_config", "{warning}");
    }
    server::run(settings)
}

/// Whoever closed the pipe has read enough.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
