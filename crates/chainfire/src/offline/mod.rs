//! What is done to the data folder of a stopped node.
//!
//! | command | its subject |
//! |---|---|
//! | `chainfire check` | every checksum of log and state; how far they reach, which is what a survivor is chosen by ([`check`]) |
//! | `chainfire repair` | damaged data, given up for a copy from the peers, or salvaged ([`repair`]) |
//! | `chainfire recover --unsafe` | a majority is gone for good: what this node has becomes a new cluster ([`recover`]) |
//! | `rocksdb_ldb --db=DIR …` | the program under this name: RocksDB's own words for check and repair ([`ldb`]) |
//!
//! All of them hold the folder's lock, so that no node runs in it meanwhile, and print to standard output. What could not be
//! done is one line on standard error that ends with a code.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | intact; or done |
//! | 1 | not done: a wrong argument, no such folder, in use by a running node, not confirmed |
//! | 2 | damaged; or what was to be mended cannot be |

mod arguments;
mod check;
mod ldb;
mod recover;
mod repair;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use arguments::Arguments;
use node::{Folder, IdentityError};

/// How a command ended.
pub type ExitCode = u8;

const DONE: ExitCode = 0;
const NOT_DONE: ExitCode = 1;
const DAMAGED: ExitCode = 2;

/// The program's name in RocksDB's words.
const LDB: &str = "rocksdb_ldb";

/// Why a command ended early: one line for people, with its code.
struct Failure {
    exit: ExitCode,
    line: String,
}

impl Failure {
    fn not_done(line: impl Into<String>) -> Failure {
        Failure { exit: NOT_DONE, line: line.into() }
    }

    fn damaged(line: impl Into<String>) -> Failure {
        Failure { exit: DAMAGED, line: line.into() }
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Failure {
        match error {
            IdentityError::InUse { .. } => Failure::not_done(format!("{error}; stop the node first code=CF4101")),
            IdentityError::Damaged { .. } => Failure::damaged(format!("{error} code=CF4102")),
            error => Failure::not_done(format!("{error} code=CF4101")),
        }
    }
}

type Command = fn(&Arguments) -> Result<ExitCode, Failure>;

/// Runs an offline command if the program was called for one.
pub fn run(program: &OsStr, words: &[OsString]) -> Option<ExitCode> {
    let name = Path::new(program).file_name().unwrap_or_default();
    let (done, name) = if name == LDB {
        (ldb::run(words), LDB.to_owned())
    } else {
        let word = words.first()?.to_str()?;
        let (command, help): (Command, &str) = match word {
            "check" => (check::run, check::HELP),
            "repair" => (repair::run, repair::HELP),
            "recover" => (recover::run, recover::HELP),
            _ => return None,
        };
        let asked = arguments::parse(&words[1..], word);
        let done = asked.and_then(|given| if given.help { print(help) } else { command(&given) });
        (done, format!("{} {word}", name.display()))
    };
    Some(done.unwrap_or_else(|failure| {
        eprintln!("{name}: {}", failure.line);
        failure.exit
    }))
}

/// Whoever closed the pipe has read enough.
fn print(text: &str) -> Result<ExitCode, Failure> {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(DONE)
}

/// The folder of a stopped node that was asked about.
fn folder(given: &Arguments) -> Result<Folder, Failure> {
    Ok(Folder::stopped(&given.data_dir()?)?)
}

/// What was made as root has to be the node's own.
fn give_to_owner(folder: &Folder) -> Result<(), Failure> {
    folder.give_to_owner().map_err(|error| {
        let path = folder.path().display();
        Failure::not_done(format!(
            "done, but files in {path} belong to root and cannot be given to the folder's owner: {error}; \
             run chown -R on it code=CF4101"
        ))
    })
}
