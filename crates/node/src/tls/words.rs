//! TLS failures in the words that operators look for.
//!
//! | words | who refuses whom |
//! |---|---|
//! | `certificate verify failed: …` | this side refuses the other's certificate |
//! | `tls: bad certificate: …` | the other side refuses ours |

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// What went wrong in a handshake, or on a connection, in one line.
pub fn of_io(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed the connection; does it speak TLS, as this node does?".to_owned()
        }
        None if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => "timeout".to_owned(),
        None => error.to_string(),
    }
}

pub fn of(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => format!("certificate verify failed: {}", of_certificate(why)),
        Error::NoCertificatesPresented
        | Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
            "certificate verify failed: the other side showed no certificate".to_owned()
        }
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => "the other side does not speak TLS, and this node does: their [network.tls] must match".to_owned(),
        error => format!("tls: {error}"),
    }
}

fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "it is signed by a CA that this node does not know".to_owned(),
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("it expired at {} (Unix time)", not_after.as_secs())
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; is a clock wrong?".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not made for this purpose (members need serverAuth and clientAuth)".to_owned()
        }
        CertificateError::Revoked => "it is revoked".to_owned(),
        CertificateError::BadSignature => "its signature is wrong".to_owned(),
        error => error.to_string(),
    }
}

fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA => "the other side does not know the CA that signed ours",
        AlertDescription::CertificateExpired => "ours has expired",
        AlertDescription::CertificateRevoked => "ours is revoked",
        AlertDescription::CertificateRequired => "the other side wants a certificate and got none",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "the other side refuses ours"
        }
        AlertDescription::UnsupportedCertificate => "ours is not made for this purpose",
        AlertDescription::DecryptError => "the other side could not check our signature",
        other => return format!("tls: the other side broke off ({other:?})"),
    };
    format!("tls: bad certificate: {why}")
}
