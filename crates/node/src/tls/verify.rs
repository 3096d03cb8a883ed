//! What a member's certificate must be, before it is asked whose it is: signed by our CA, of this time, for servers, and
//! not revoked.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use webpki::{CertRevocationList, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy};

/// The revocation lists in use, each valid in form; whether a CA of ours signed a list is seen when it is needed.
#[derive(Debug)]
pub struct Revoked {
    der: Vec<CertificateRevocationListDer<'static>>,
    parsed: Vec<CertRevocationList<'static>>,
}

impl Revoked {
    /// # Errors
    /// Why a list is not one.
    pub fn new(der: Vec<CertificateRevocationListDer<'static>>) -> Result<Revoked, String> {
        let parse = |list: &CertificateRevocationListDer<'_>| OwnedCertRevocationList::from_der(list);
        let parsed: Result<Vec<_>, _> = der.iter().map(|list| parse(list).map(CertRevocationList::from)).collect();
        Ok(Revoked { der, parsed: parsed.map_err(|error| error.to_string())? })
    }

    /// Whether one of them names this certificate.
    pub fn names(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
        let names = |list: &CertRevocationList<'_>| {
            list.issuer() == certificate.issuer() && matches!(list.find_serial(certificate.serial()), Ok(Some(_)))
        };
        self.parsed.iter().any(names)
    }

    pub fn lists(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.der.clone()
    }
}

/// Checks the chain alone. The name is the business of whoever knows which member is expected.
#[derive(Debug)]
pub struct Chain {
    pub roots: Arc<RootCertStore>,
    pub revoked: Arc<Revoked>,
    pub provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Chain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        self.refuse_revoked(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Chain {
    /// Of a chain that is in order otherwise.
    fn refuse_revoked(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.parsed.iter().collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let options = options.with_status_policy(UnknownStatusPolicy::Allow).build();
        let other = |error: webpki::Error| match error {
            webpki::Error::CertRevoked => CertificateError::Revoked,
            error => CertificateError::Other(rustls::OtherError(Arc::new(error))),
        };
        let verified = webpki::EndEntityCert::try_from(end_entity).and_then(|certificate| {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let (roots, usage) = (&self.roots.roots, KeyUsage::server_auth());
            certificate.verify_for_usage(algorithms, roots, intermediates, now, usage, Some(options), None).map(drop)
        });
        verified.map_err(|error| Error::InvalidCertificate(other(error)))
    }
}

/// Whether the node's own chain leads to the CA. Its time does not matter here.
pub fn signed_by(provider: &CryptoProvider, roots: &RootCertStore, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
    let certificate = ParsedCertificate::try_from(&chain[0])?;
    let algorithms = provider.signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&certificate, roots, &chain[1..], UnixTime::now(), algorithms) {
        Err(Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => Ok(()),
        other => other,
    }
}
