//! How a program with a node begins and ends: it understands what it is told, prints or runs, and says in one line why it
//! could not.
//!
//! Exit codes: 0 when it stopped in good order or printed what was asked for, 1 when it could not start or understand
//! (one line on standard error says why, and ends with a code; nothing was changed), 70 when a running server could not go
//! on.

use std::process::ExitCode;
use std::sync::Arc;

use settings::Schema;
use settings::source::{self, Request, Source, Validate};

use crate::reload::{Reloader, warn};
use crate::start_error::StartError;
use crate::tls::Certificates;
use crate::{logging, node};

/// The whole of `main`. `log` begins the targets of the program's log lines. `certificates` loads what a start would: a check of
/// the configuration does it, too, and ends there.
pub fn main<S: 'static>(
    schema: &'static Schema,
    log: &'static str,
    validate: Validate<S>,
    certificates: impl FnOnce(&S) -> Result<Option<Arc<Certificates>>, node::StartError>,
    run: impl FnOnce(S, Reloader) -> Result<(), StartError>,
) -> ExitCode {
    let words = std::env::args_os().skip(1);
    let asked = Source::new(schema, validate, words, source::environment());
    let asked = asked.and_then(|source| Ok((source.read()?, source))).map_err(StartError::settings);
    end(
        schema.program,
        asked.and_then(|(request, source)| match request {
            Request::Print(text) => {
                print(&text);
                Ok(())
            }
            Request::Check { settings, answer } => {
                certificates(&settings)?;
                print(&answer);
                Ok(())
            }
            Request::Run(told) => {
                logging::start(log, told.layers.text("log", "level")).map_err(StartError::settings)?;
                warn(&told.warnings);
                open_many_files();
                run(told.settings, Reloader::of(source, told.layers))
            }
        }),
    )
}

/// Raises the limit on open files to what this process may have: each connection is one, and the limit that a login gives is
/// there for programs that cannot count beyond 1,024.
pub fn open_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, and holds one when the second call reads it.
    let failed = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 || {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0
        }
    };
    if failed {
        let error = std::io::Error::last_os_error();
        tracing::warn!(target: "chainfire_network", "The limit on open files stays as it is, reason={error}");
    }
}

/// How a running server ends that cannot go on and has said why: at once, as if it were killed. What was acknowledged is on the
/// disk, and there is nothing else to save; an orderly exit would wait for the threads of an engine that has failed.
pub fn stop_dead() -> ! {
    // SAFETY: takes a number and does not return; no code of this process runs after it.
    unsafe { libc::_exit(CANNOT_GO_ON) }
}

const CANNOT_GO_ON: i32 = 70;

/// The exit code, and the line.
pub fn end(program: &str, ended: Result<(), StartError>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            logging::refuse(program, &why.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Whoever closed the pipe has read enough.
pub fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
