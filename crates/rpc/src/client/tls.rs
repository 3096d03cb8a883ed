//! A client's side of TLS: which servers it trusts, and what it shows of itself. Read from PEM files once, when the
//! client starts ([`Tls::load`]); or, where a server is a client of others and lives longer than its certificates, asked for
//! at every connection ([`Tls::of_the_moment`]).

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Where systems keep the CAs that everybody trusts, unless `SSL_CERT_FILE` says otherwise.
const SYSTEM_CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CAs that servers are trusted by. Without one, the system's.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, with those between it and its CA, and its key. Both or none.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name to look for in the server's certificate, instead of the host in its address.
    pub server_name: Option<String>,
    /// Believe any certificate of a server. For looking into trouble only.
    pub trust_anyone: bool,
}

/// Ready for connections; cheap to clone.
#[derive(Clone)]
pub struct Tls {
    config: Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>,
    pub(crate) server_name: Option<ServerName<'static>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn load(files: &TlsFiles) -> Result<Tls, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = if files.trust_anyone {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(algorithms(&provider))))
        } else {
            builder.with_root_certificates(trusted(files.ca.as_deref())?)
        };
        let mut config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let (chain, secret) = (certificates(cert)?, private_key(key)?);
                builder.with_client_auth_cert(chain, secret).map_err(|error| match error {
                    Error::InconsistentKeys(_) => {
                        format!("{}: this key does not belong to the certificate in {}", key.display(), cert.display())
                    }
                    error => format!("{} and {}: {error}", cert.display(), key.display()),
                })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), None) => return Err(format!("{}: a certificate needs its key too", cert.display())),
            (None, Some(key)) => return Err(format!("{}: a key needs its certificate too", key.display())),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = |text: &String| {
            ServerName::try_from(text.clone()).map_err(|_| format!("`{text}` is no host name or address"))
        };
        Ok(Tls { server_name: files.server_name.as_ref().map(name).transpose()?, ..Tls::always(config) })
    }

    /// As `config` says when a connection is made. It offers HTTP/2.
    pub fn of_the_moment(config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static) -> Tls {
        Tls { config: Arc::new(config), server_name: None }
    }

    fn always(config: ClientConfig) -> Tls {
        let config = Arc::new(config);
        Tls::of_the_moment(move || config.clone())
    }

    /// The same for a protocol other than HTTP/2.
    #[must_use]
    pub fn speaking(&self, protocol: &str) -> Tls {
        let mut config = ClientConfig::clone(&self.config());
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Tls { server_name: self.server_name.clone(), ..Tls::always(config) }
    }

    pub fn config(&self) -> Arc<ClientConfig> {
        (self.config)()
    }
}

fn trusted(file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = file {
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        return Ok(roots);
    }
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = SYSTEM_CA_FILES.iter().map(PathBuf::from).find(|path| path.is_file());
    if let Some(file) = named.or(known) {
        // A system's file may hold some that nobody can use.
        roots.add_parsable_certificates(certificates(&file)?);
    }
    if roots.is_empty() {
        return Err("no CA is known on this system to check the server's certificate with: name one".to_owned());
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{}: there is no certificate in it (PEM, `BEGIN CERTIFICATE`)", file.display())),
        Err(error) => Err(format!("{}: its PEM text is damaged: {error}", file.display())),
    }
}

/// A key that others may read is no secret.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let mode = fs::metadata(file).map_err(|error| unreadable(file, &error))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = file.display();
        return Err(format!("key file {path} may be read by others (mode {mode:04o}): chmod 600 {path}"));
    }
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            format!(
                "{}: there is no private key in it that is not encrypted (PEM, `BEGIN PRIVATE KEY`)",
                file.display()
            )
        }
        error => format!("{}: its PEM text is damaged: {error}", file.display()),
    })
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &io::Error) -> String {
    format!("{}: cannot be read: {error}", file.display())
}

fn algorithms(provider: &CryptoProvider) -> WebPkiSupportedAlgorithms {
    provider.signature_verification_algorithms
}

/// Believes any certificate, but not that whoever shows it has its key: that is still checked.
#[derive(Debug)]
struct TrustAnyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
