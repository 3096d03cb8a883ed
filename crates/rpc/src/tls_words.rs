//! What goes wrong with TLS, in the words that operators and their runbooks look for. rustls words it otherwise.
//!
//! Two sides can refuse: we refuse the certificate of the other side (`certificate verify failed: …`), or it refuses ours
//! and says so with an alert (`tls: bad certificate`, `tls: certificate required`). An alert names its reason only roughly;
//! the details are in the log of whoever sent it.

use std::io;

use base::Moment;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// What a port that speaks TLS tells those who do not. Servers answer with it, clients look for it.
pub const SPEAKS_TLS: &str = "this port speaks TLS: use https://";
/// What a client finds when it speaks TLS to one that does not.
pub const SPEAKS_NO_TLS: &str = "this port does not speak TLS: use http://";
/// How all complaints about the other side's certificate begin.
pub const VERIFY_FAILED: &str = "certificate verify failed";
/// How the other side's complaint about our certificate begins.
pub const BAD_CERTIFICATE: &str = "tls: bad certificate";
/// The other side wants a certificate, and we have shown none.
pub const CERTIFICATE_REQUIRED: &str = "tls: certificate required";

/// What a member finds when another one speaks no TLS.
pub const OTHER_SPEAKS_NO_TLS: &str = "the other side does not speak TLS, and this node does: either both name certificates in their configuration, or neither";

/// What went wrong on a connection between servers, or in a server's handshake with a client.
pub fn of_io(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        )) => OTHER_SPEAKS_NO_TLS.to_owned(),
        Some(error @ Error::InvalidMessage(_)) => format!("tls: {error}"),
        Some(error) => words(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed the connection; does it speak TLS, as this node does?".to_owned()
        }
        None if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => "timeout".to_owned(),
        None => error.to_string(),
    }
}

/// What went wrong, as a client says it: one line without a full stop.
pub fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => format!("{VERIFY_FAILED}: {}", of_certificate(why)),
        Error::NoCertificatesPresented
        | Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
            format!("{VERIFY_FAILED}: the other side showed no certificate")
        }
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::InvalidMessage(_) => SPEAKS_NO_TLS.to_owned(),
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => {
            format!("tls: no common version or protocol: {error}")
        }
        other => format!("tls: {other}"),
    }
}

fn of_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => "unknown CA: none of those that are trusted has signed it".to_owned(),
        CertificateError::BadSignature => {
            "its signature is wrong: another CA of the same name has signed it".to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("expired on {}", Moment(not_after.as_secs()).to_the_minute())
        }
        CertificateError::Expired => "expired".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("not valid before {}; is the clock right?", Moment(not_before.as_secs()).to_the_minute())
        }
        CertificateError::NotValidYet => "not valid yet; is the clock right?".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
            let names = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
            format!("not valid for {}, but for {names}", expected.to_str())
        }
        CertificateError::NotValidForName => "not valid for the name of the other side".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this use".to_owned()
        }
        CertificateError::Revoked => "revoked".to_owned(),
        CertificateError::BadEncoding => "it cannot be read".to_owned(),
        other => other.to_string(),
    }
}

fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    let why = match alert {
        Alert::CertificateRequired => return CERTIFICATE_REQUIRED.to_owned(),
        Alert::BadCertificate => "",
        Alert::UnknownCA => ": unknown CA",
        Alert::CertificateExpired => ": expired",
        Alert::CertificateRevoked => ": revoked",
        Alert::CertificateUnknown => ": not accepted",
        Alert::UnsupportedCertificate => ": of an unsupported kind, or not made for this use",
        Alert::AccessDenied => ": access denied",
        Alert::DecryptError => ": its signature is wrong",
        Alert::HandshakeFailure => return "tls: handshake failure".to_owned(),
        other => return format!("tls: alert from the other side: {other:?}"),
    };
    format!("{BAD_CERTIFICATE}{why}")
}

/// rustls writes `DnsName("node1")` and `IpAddress(127.0.0.1)`.
fn plain(name: &str) -> &str {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or(name).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbooks_words() {
        let unknown = words(&Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(unknown.starts_with("certificate verify failed: unknown CA"), "{unknown}");
        assert_eq!(words(&Error::AlertReceived(AlertDescription::BadCertificate)), "tls: bad certificate");
        assert_eq!(words(&Error::AlertReceived(AlertDescription::UnknownCA)), "tls: bad certificate: unknown CA");
        assert_eq!(words(&Error::AlertReceived(AlertDescription::CertificateRequired)), "tls: certificate required");
        assert_eq!(plain("DnsName(\"node1\")"), "node1");
        assert_eq!(plain("IpAddress(127.0.0.1)"), "127.0.0.1");
    }
}
