//! How a call ends when it does not end well: gRPC's codes, and a text that clients match on.

use std::borrow::Cow;
use std::fmt;

/// gRPC's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// Numbers that gRPC does not know become `Unknown`.
    pub fn from_number(number: u32) -> Code {
        use Code::*;
        const ALL: [Code; 17] = [
            Ok,
            Cancelled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        ALL.get(number as usize).copied().unwrap_or(Unknown)
    }

    pub fn number(self) -> u32 {
        self as u32
    }

    /// What plain HTTP says for it.
    pub fn http_status(self) -> u16 {
        match self {
            Code::Ok => 200,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::Aborted => 409,
            Code::ResourceExhausted => 429,
            Code::Cancelled => 499,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
            Code::Unknown | Code::Internal | Code::DataLoss => 500,
        }
    }
}

/// The trailer of a failed call of which nothing was done, with the value `1`: a write may be asked again, too.
pub const NOTHING_DONE: &str = "centra-nothing-done";

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: Cow<'static, str>,
    /// Whoever failed is sure that nothing of the call was done, and that it may be asked again.
    pub nothing_done: bool,
}

impl Status {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Status {
        Status { code, message: message.into(), nothing_done: false }
    }

    /// The same, of a call of which nothing was done. Clients hear it as the trailer [`NOTHING_DONE`].
    #[must_use]
    pub fn with_nothing_done(self) -> Status {
        Status { nothing_done: true, ..self }
    }

    pub fn unimplemented(message: impl Into<Cow<'static, str>>) -> Status {
        Status::new(Code::Unimplemented, message)
    }

    pub fn internal(message: impl Into<Cow<'static, str>>) -> Status {
        Status::new(Code::Internal, message)
    }

    pub fn invalid_argument(message: impl Into<Cow<'static, str>>) -> Status {
        Status::new(Code::InvalidArgument, message)
    }

    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Status {
        Status::new(Code::Unavailable, message)
    }

    pub fn cancelled() -> Status {
        Status::new(Code::Cancelled, "context canceled")
    }

    pub fn deadline_exceeded() -> Status {
        Status::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    pub fn resource_exhausted(message: impl Into<Cow<'static, str>>) -> Status {
        Status::new(Code::ResourceExhausted, message)
    }

    /// The message as it stands in `grpc-message`: percent-encoded wherever it is not printable ASCII.
    pub(crate) fn encoded_message(&self) -> Vec<u8> {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        let mut out = Vec::with_capacity(self.message.len());
        for &byte in self.message.as_bytes() {
            if (b' '..=b'~').contains(&byte) && byte != b'%' {
                out.push(byte);
            } else {
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        out
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        let encoded = |text: &'static str| String::from_utf8(Status::internal(text).encoded_message()).unwrap();
        assert_eq!(encoded("etcdserver: no leader"), "etcdserver: no leader");
        assert_eq!(encoded("100% é\n"), "100%25 %C3%A9%0A");
    }

    #[test]
    fn codes_keep_their_numbers() {
        assert!((0..17).all(|number| Code::from_number(number).number() == number));
        assert_eq!(Code::from_number(17), Code::Unknown);
    }
}
