//! The program `flaredb`.
//!
//! Exit codes: 0 when it stopped in good order or printed what was asked for, 1 when it could not start or understand
//! (one line on standard error says why; nothing was changed), 70 when a running store could not go on.

use std::process::ExitCode;

use flaredb::config::{Request, understand};
use flaredb::server;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let words: Result<Vec<String>, _> = std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect();
    // Variables that are not text are not ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let done = words.map_err(|word| format!("{word:?} is not valid UTF-8")).and_then(|words| {
        match understand(&words, &environment)? {
            Request::Print(text) => {
                print(&text);
                Ok(())
            }
            Request::Run(settings) => {
                node::logging::start("flaredb", &settings.log_level)?;
                server::run(*settings)
            }
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            node::logging::refuse("flaredb", &why);
            ExitCode::FAILURE
        }
    }
}

/// Whoever closed the pipe has read enough.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
