//! The program `placement-driver`; with `recover` as its first argument it runs no member, and mends a stopped one.
//!
//! Exit codes: 0 when it stopped in good order or printed what was asked for, 1 when it could not start or understand
//! (one line on standard error says why; nothing was changed), 70 when a running member could not go on.

use std::process::ExitCode;

use placement::config::{Request, understand};
use placement::{recover, server};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let words: Result<Vec<String>, _> = std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect();
    // Variables that are not text are not ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    if let Ok(words) = &words
        && words.first().is_some_and(|word| word == recover::COMMAND)
    {
        return match recover::run(&words[1..], &environment) {
            Ok(text) => {
                print(&text);
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("placement-driver {}: {why}", recover::COMMAND);
                ExitCode::FAILURE
            }
        };
    }
    let done = words.map_err(|word| format!("{word:?} is not valid UTF-8")).and_then(|words| {
        match understand(&words, &environment)? {
            Request::Print(text) => {
                print(&text);
                Ok(())
            }
            Request::Run(settings) => {
                node::logging::start("placement", &settings.log_level)?;
                server::run(*settings)
            }
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            node::logging::refuse("placement-driver", &why);
            ExitCode::FAILURE
        }
    }
}

/// Whoever closed the pipe has read enough.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
