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

use std::error::Error;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use rpc::client::ConnectError;
use rpc::tls_words::{BAD_CERTIFICATE, CERTIFICATE_REQUIRED, SPEAKS_NO_TLS, SPEAKS_TLS, VERIFY_FAILED};
use tonic::{Code, Status};

// Stable codes of this program's own errors: `code=CF6001`.
/// We do not accept the server's certificate.
const SERVER_NOT_TRUSTED: u16 = 6001;
/// The server does not accept ours.
const CLIENT_NOT_TRUSTED: u16 = 6002;
/// The server wants one of us.
const CLIENT_UNKNOWN: u16 = 6003;
/// `http://` at a port that speaks TLS.
const TLS_WANTED: u16 = 6004;
/// `https://` at a port that speaks none.
const TLS_UNWANTED: u16 = 6005;
/// Anything else between the two sides of TLS.
const TLS_FAILED: u16 = 6006;
/// A certificate or key of ours cannot be read, or does not fit.
pub const CERTIFICATE_FILE: u16 = 6010;
pub const CONTEXT_UNKNOWN: u16 = 6020;
pub const CONTEXT_BROKEN: u16 = 6021;
pub const BUNDLE_FAILED: u16 = 6030;

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
    /// A stable number for what happened, where it is not the server that said it.
    pub code: Option<u16>,
}

impl Failure {
    pub fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), advice: None, code: None }
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

    pub fn code(mut self, code: u16) -> Failure {
        self.code = Some(code);
        self
    }

    /// The time for the command ran out.
    pub fn timed_out(endpoint: &str) -> Failure {
        Failure::new(Kind::TimedOut, format!("{endpoint}: context deadline exceeded"))
            .advise("is the node overloaded or cut off from its peers? see `status`; --timeout waits longer")
    }

    /// The server says that the time ran out, and of what.
    pub fn timed_out_saying(endpoint: &str, words: &str) -> Failure {
        let text = format!("{endpoint}: context deadline exceeded: {words}");
        Failure::new(Kind::TimedOut, text).advise("read the key: a write may have happened")
    }

    pub fn no_leader(endpoint: &str) -> Failure {
        Failure::new(Kind::NoLeader, format!("{endpoint}: no leader elected"))
            .advise("fewer than a majority of the members can reach one another: see `status` on each of them")
    }

    /// A connection could not be made.
    pub fn of_connection(endpoint: &str, error: &ConnectError) -> Failure {
        let error = match error {
            ConnectError::Unreachable(error) => error,
            ConnectError::TurnedAway(words) => {
                return Failure::of_words(endpoint, words)
                    .unwrap_or_else(|| Failure::new(Kind::Unreachable, format!("{endpoint}: {words}")));
            }
            ConnectError::TimedOut => return Failure::silent(endpoint),
        };
        if let Some(failure) = Failure::of_tls(endpoint, error) {
            return failure;
        }
        let mut cause: &(dyn Error + 'static) = error;
        let mut kind = None;
        while let Some(deeper) = cause.source() {
            cause = deeper;
            kind = kind.or(cause.downcast_ref::<io::Error>().map(io::Error::kind));
        }
        match kind {
            Some(ErrorKind::ConnectionRefused) => {
                Failure::new(Kind::Unreachable, format!("{endpoint}: connection refused"))
                    .advise("is a server running there? look with `systemctl status`, or try another --endpoint")
            }
            Some(ErrorKind::TimedOut) => Failure::silent(endpoint),
            _ => Failure::new(Kind::Unreachable, format!("{endpoint}: cannot connect: {cause}"))
                .advise("check the address of --endpoint"),
        }
    }

    /// Nobody said anything, not even no.
    fn silent(endpoint: &str) -> Failure {
        Failure::new(Kind::Unreachable, format!("{endpoint}: connection timeout"))
            .advise("is the host up, and does a firewall let this port through?")
    }

    /// The server answered with an error, or the connection broke.
    pub fn of_status(endpoint: &str, status: &Status) -> Failure {
        // What has no source was said by the server itself.
        if let Some(failure) = status.source().and_then(|source| Failure::of_tls(endpoint, source)) {
            return failure;
        }
        let message = match status.message() {
            "" => format!("{:?}", status.code()),
            message => message.to_owned(),
        };
        let text = |message: &str| format!("{endpoint}: {message}");
        match (status.code(), message.as_str()) {
            (Code::Unavailable, "etcdserver: no leader") => Failure::no_leader(endpoint),
            (Code::Unavailable, "etcdserver: leader changed") => Failure::new(Kind::NoLeader, text(&message))
                .advise("a new leader is being elected: try again in a moment"),
            (Code::Unavailable, message) if message.contains("was removed from its cluster") => {
                Failure::new(Kind::Refused, text(message))
                    .advise("its cluster goes on without it: use another member's --endpoint")
            }
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

    /// TLS, or the want of it, is the cause; its words are somewhere among the causes' texts.
    fn of_tls(endpoint: &str, error: &(dyn Error + 'static)) -> Option<Failure> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(failure) = Failure::of_words(endpoint, &error.to_string()) {
                return Some(failure);
            }
            cause = error.source();
        }
        None
    }

    fn of_words(endpoint: &str, text: &str) -> Option<Failure> {
        TLS_TROUBLES.iter().find_map(|(phrase, code, advice)| {
            let at = text.find(phrase)?;
            // Around them may stand what a library says; the words of a port are complete in themselves.
            let words = if *phrase == SPEAKS_TLS { phrase } else { &text[at..] };
            let failure = Failure::new(Kind::Unreachable, format!("{endpoint}: {words}"));
            Some(failure.advise(*advice).code(*code))
        })
    }

    /// Tells the user, on standard error.
    pub fn report(&self) -> ExitCode {
        if self.kind != Kind::Unheard {
            let advice = self.advice.as_ref().map(|advice| format!(" ({advice})")).unwrap_or_default();
            let code = self.code.map(|code| format!(" code=CF{code}")).unwrap_or_default();
            eprintln!("Error: {}{advice}{code}", self.text);
        }
        ExitCode::from(self.kind as u8)
    }
}

/// Words, what they are, and what to do. The first that is found counts.
const TLS_TROUBLES: &[(&str, u16, &str)] = &[
    (
        VERIFY_FAILED,
        SERVER_NOT_TRUSTED,
        "is --cacert the CA of this cluster, and the host in --endpoint a name of the certificate? `openssl x509 -noout \
         -text` shows both; scripts/generate-dev-certs.sh renews what expired",
    ),
    (CERTIFICATE_REQUIRED, CLIENT_UNKNOWN, "this port wants to see a certificate of the client: give --cert and --key"),
    (
        BAD_CERTIFICATE,
        CLIENT_NOT_TRUSTED,
        "the server does not accept --cert: has its CA signed it, for clients, and is it valid still? the server's log \
         says more",
    ),
    (SPEAKS_TLS, TLS_WANTED, "write https:// in --endpoint, and give --cacert"),
    ("the server answers in HTTP/1", TLS_WANTED, "write https:// in --endpoint, and give --cacert"),
    (SPEAKS_NO_TLS, TLS_UNWANTED, "write http:// in --endpoint, or is it the wrong port?"),
    (
        "the server ended the connection during the TLS handshake",
        TLS_UNWANTED,
        "write http:// in --endpoint, or is it the wrong port?",
    ),
    ("tls: ", TLS_FAILED, "the server's log may say more"),
];

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
    fn words_of_tls_are_found_among_the_causes() {
        let of = |text: &str| Failure::of_tls("https://x", &io::Error::other(text.to_owned()));
        let goaway = of("connection error received: not a result (b\"this port speaks TLS: use https://\")").unwrap();
        assert_eq!(
            (goaway.text.as_str(), goaway.code),
            ("https://x: this port speaks TLS: use https://", Some(TLS_WANTED))
        );
        let alert = of("tls: bad certificate: unknown CA").unwrap();
        assert_eq!(alert.text, "https://x: tls: bad certificate: unknown CA");
        assert_eq!((alert.kind, alert.code), (Kind::Unreachable, Some(CLIENT_NOT_TRUSTED)));
        assert!(of("connection refused").is_none());
    }

    #[test]
    fn failures_have_codes_and_advice() {
        let of = |code, message: &str| Failure::of_status("http://x", &Status::new(code, message));
        let no_leader = of(Code::Unavailable, "etcdserver: no leader");
        assert_eq!((no_leader.kind, no_leader.text.as_str()), (Kind::NoLeader, "http://x: no leader elected"));
        assert!(no_leader.advice.is_some());
        assert_eq!(of(Code::DeadlineExceeded, "context deadline exceeded").kind, Kind::TimedOut);
        let removed = of(Code::Unavailable, "etcdserver: this member was removed from its cluster");
        assert_eq!(removed.kind, Kind::Refused);
        assert!(removed.advice.unwrap().contains("another member's --endpoint"));
        assert_eq!(of(Code::Unavailable, "etcdserver: request timed out").kind, Kind::TimedOut);
        assert_eq!(of(Code::InvalidArgument, "etcdserver: key is not provided").kind, Kind::Refused);
        assert_eq!(of(Code::NotFound, "").text, "http://x: NotFound");
    }
}
