//! Why a program did not start: one line for people, with a code at its end for those who count.
//!
//! The codes are what a supervisor's log is searched for (`docs/ops/troubleshooting.md` lists them); their words may change.

use std::fmt;

use crate::node::StartError as Node;

/// What kind of thing stood in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A flag, a variable or a file that is not understood, or values that do not go together.
    Settings,
    /// An address that cannot be listened on.
    Address,
    /// A certificate, a key or a CA.
    Certificate,
    /// A data folder that cannot be used, or is somebody else's.
    Folder,
    /// What lies in the data folder cannot be read, and nobody is there to get it from.
    Data,
    /// The operating system gives less than is needed.
    System,
}

impl Cause {
    pub fn code(self) -> &'static str {
        match self {
            Cause::Settings => "CF7010",
            Cause::Address => "CF7011",
            Cause::Certificate => "CF7012",
            Cause::Folder => "CF7013",
            Cause::Data => "CF7014",
            Cause::System => "CF7015",
        }
    }
}

#[derive(Debug)]
pub struct StartError {
    cause: Cause,
    why: String,
}

impl StartError {
    pub fn new(cause: Cause, why: impl fmt::Display) -> StartError {
        StartError { cause, why: why.to_string() }
    }

    pub fn settings(why: impl fmt::Display) -> StartError {
        StartError::new(Cause::Settings, why)
    }
}

impl From<Node> for StartError {
    fn from(error: Node) -> StartError {
        let cause = match error {
            Node::Identity(_) => Cause::Folder,
            Node::Listen { .. } | Node::ListenGossip { .. } => Cause::Address,
            Node::Tls(_) | Node::WrongName { .. } | Node::OtherNumber { .. } => Cause::Certificate,
            Node::Damaged(_)
            | Node::Log(_)
            | Node::Alone(_)
            | Node::State(_)
            | Node::Unknown(_)
            | Node::NotSpared(_)
            | Node::Failing(_) => Cause::Data,
            Node::Gossip(_) => Cause::System,
        };
        StartError::new(cause, error)
    }
}

/// One line; a reason that brings a code of its own keeps that.
impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why.contains(" code=CF") {
            true => f.write_str(&self.why),
            false => write!(f, "{} code={}", self.why, self.cause.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_one_code() {
        let address = "10.0.0.1:2380".parse().unwrap();
        let refused = || std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        for (error, code) in [
            (Node::Listen { address, error: refused() }, "CF7011"),
            (Node::ListenGossip { address, error: refused() }, "CF7011"),
            (Node::Alone("the checksum differs".to_owned()), "CF7014"),
            (Node::State("a part of a restore code=CF5001".to_owned()), "CF5001"),
        ] {
            let line = StartError::from(error).to_string();
            assert!(line.ends_with(&format!(" code={code}")) && line.matches("code=").count() == 1, "{line}");
        }
    }
}
