//! What went wrong, in one line that says what to do next, and the exit code that scripts look at.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the server refused |
//! | 2 | the command line or the input is wrong |
//! | 3 | no endpoint could be reached |
//! | 4 | no leader elected, or no quorum |
//! | 5 | the time ran out; a write may or may not have happened |
//! | 6 | a local file is damaged or cannot be read or written |

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use tonic::{Code, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Refused = 1,
    Usage = 2,
    Unreachable = 3,
    NoLeader = 4,
    TimedOut = 5,
    Local = 6,
    /// Whoever read our output went away: nothing to say to anyone.
    Unheard = 0,
}

/// Why a command failed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: Kind,
    /// What happened.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Failure {
    pub fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), advice: None }
    }

    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, text)
    }

    pub fn local(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Local, text)
    }

    pub fn advise(mut self, advice: impl Into<String>) -> Failure {
        self.advice = Some(advice.into());
        self
    }

    /// The time for the command ran out.
    pub fn timed_out(endpoint: &str) -> Failure {
        Failure::new(Kind::TimedOut, format!("{endpoint}: context deadline exceeded"))
            .advise("is the node overloaded or cut off from its peers? see `status`; --timeout waits longer")
    }

    /// A connection could not be made.
    pub fn of_connection(endpoint: &str, error: &tonic::transport::Error) -> Failure {
        let mut cause: &(dyn std::error::Error + 'static) = error;
        let mut kind = None;
        while let Some(deeper) = cause.source() {
            cause = deeper;
            kind = kind.or(cause.downcast_ref::<io::Error>().map(io::Error::kind));
        }
        match kind {
            Some(ErrorKind::ConnectionRefused) => {
                Failure::new(Kind::Unreachable, format!("{endpoint}: connection refused"))
                    .advise("is the node running? try `systemctl status chainfire`, or another --endpoint")
            }
            Some(ErrorKind::TimedOut) => Failure::new(Kind::Unreachable, format!("{endpoint}: connection timeout"))
                .advise("is the host up, and does a firewall let this port through?"),
            _ => Failure::new(Kind::Unreachable, format!("{endpoint}: cannot connect: {cause}"))
                .advise("check the address of --endpoint"),
        }
    }

    /// The server answered with an error, or the connection broke.
    pub fn of_status(endpoint: &str, status: &Status) -> Failure {
        let message = match status.message() {
            "" => format!("{:?}", status.code()),
            message => message.to_owned(),
        };
        let text = |message: &str| format!("{endpoint}: {message}");
        match (status.code(), message.as_str()) {
            (Code::Unavailable, "etcdserver: no leader") => Failure::new(Kind::NoLeader, text("no leader elected"))
                .advise("fewer than a majority of the members can reach one another: see `status` on each of them"),
            (Code::Unavailable, "etcdserver: leader changed") => Failure::new(Kind::NoLeader, text(&message))
                .advise("a new leader is being elected: try again in a moment"),
            (Code::DeadlineExceeded, _) => Failure::timed_out(endpoint),
            (Code::Unavailable, message) if message.contains("request timed out") => {
                Failure::new(Kind::TimedOut, text(message))
                    .advise("is a majority of the members up? see `status`; a write may or may not have happened")
            }
            (Code::Unavailable, message) => Failure::new(Kind::Unreachable, text(message))
                .advise("the node is stopping or the connection broke: try again, or another --endpoint"),
            (Code::Cancelled | Code::Unknown | Code::Internal, _) if status.source().is_some() => {
                Failure::new(Kind::Unreachable, text(&message)).advise("the connection broke: try again")
            }
            (Code::Unimplemented, message) => Failure::new(Kind::Refused, text(message))
                .advise("the server does not know this call: is it Chainfire, and as new as this client?"),
            (_, message) if message.contains("database space exceeded") => Failure::new(Kind::Refused, text(message))
                .advise("free space or raise the quota, then `alarm disarm`; reads go on"),
            (_, message) if message.contains("required revision has been compacted") => {
                Failure::new(Kind::Refused, text(message))
                    .advise("the past before the compaction is gone: use a later --rev")
            }
            (_, message) if message.contains("too many requests") => {
                Failure::new(Kind::Refused, text(message)).advise("the server is overloaded: try again more slowly")
            }
            _ => Failure::new(Kind::Refused, text(&message)),
        }
    }

    /// Tells the user, on standard error.
    pub fn report(&self) -> ExitCode {
        if self.kind != Kind::Unheard {
            match &self.advice {
                Some(advice) => eprintln!("Error: {} ({advice})", self.text),
                None => eprintln!("Error: {}", self.text),
            }
        }
        ExitCode::from(self.kind as u8)
    }
}

/// Writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::new(Kind::Unheard, ""),
            _ => Failure::local(format!("cannot write the answer: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_codes_and_advice() {
        let of = |code, message: &str| Failure::of_status("http://x", &Status::new(code, message));
        let no_leader = of(Code::Unavailable, "etcdserver: no leader");
        assert_eq!((no_leader.kind, no_leader.text.as_str()), (Kind::NoLeader, "http://x: no leader elected"));
        assert!(no_leader.advice.is_some());
        assert_eq!(of(Code::DeadlineExceeded, "context deadline exceeded").kind, Kind::TimedOut);
        assert_eq!(of(Code::Unavailable, "etcdserver: request timed out").kind, Kind::TimedOut);
        assert_eq!(of(Code::InvalidArgument, "etcdserver: key is not provided").kind, Kind::Refused);
        assert_eq!(of(Code::NotFound, "").text, "http://x: NotFound");
    }
}
