//! Reading certificate files, and refusing what is unsafe or does not fit together, with one line that names the file
//! and the remedy.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::verify::{self, Revoked};
use super::{ApiTls, Expiry, FileKind, Set, TlsOptions};

/// Certificates are a few kilobytes; a revocation list of this size names some ten thousand.
const FILE_BYTES_MAX: u64 = 1 << 20;
const CERTIFICATE: &str = "certificate";
const CA: &str = "CA certificate";
const CRL: &str = "revocation list";
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
const REMAKE: &str = "make new ones with scripts/generate-dev-certs.sh, or ask whoever runs your CA";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} is needed: certificates are checked against it")]
    Missing { what: &'static str },
    #[error("cannot read {path} ({what}): {error}{}", advice(.error))]
    Unreadable { what: &'static str, path: PathBuf, error: io::Error },
    #[error("{path}: no PEM {what} in it; {REMAKE}")]
    Empty { what: &'static str, path: PathBuf },
    #[error("{path}: not a valid {what}: {why}; {REMAKE}")]
    Invalid { what: &'static str, path: PathBuf, why: String },
    #[error("key file {path} may be read by others (mode {mode:04o}): chmod 600 {path}")]
    OpenKey { path: PathBuf, mode: u32 },
    #[error("certificate {cert} and key {key} do not belong together: {why}")]
    Mismatch { cert: PathBuf, key: PathBuf, why: String },
    #[error(
        "certificate verify failed: {cert} ({subject}) is not signed by the CA in {ca}: {why}; all nodes need the same CA"
    )]
    OtherCa { cert: PathBuf, subject: String, ca: PathBuf, why: String },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; make the user that runs this program its owner (chown)",
        io::ErrorKind::NotFound => "; scripts/generate-dev-certs.sh DIR makes a CA and a pair for each node",
        _ => "",
    }
}

/// The bytes of a set.
pub struct Files {
    options: TlsOptions,
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
    api_pair: Option<(Vec<u8>, Vec<u8>)>,
    client_ca: Option<Vec<u8>>,
    crls: Vec<Vec<u8>>,
}

impl Files {
    pub fn read(options: &TlsOptions) -> Result<Files, TlsError> {
        let read_ca = |path: &PathBuf| read(CA, path);
        let read_pair = |(cert, key): &(PathBuf, PathBuf)| Ok((read(CERTIFICATE, cert)?, read_key(key)?));
        Ok(Files {
            options: options.clone(),
            cert: read(CERTIFICATE, &options.cert_file)?,
            key: read_key(&options.key_file)?,
            ca: options.ca_file.as_ref().map(read_ca).transpose()?,
            api_pair: options.api_pair.as_ref().map(read_pair).transpose()?,
            client_ca: options.client_ca_file.as_ref().map(read_ca).transpose()?,
            crls: options.crl_files.iter().map(|path| read(CRL, path)).collect::<Result<_, _>>()?,
        })
    }

    /// The same for the same bytes.
    pub fn digest(&self) -> u64 {
        let pair = self.api_pair.iter().flat_map(|(cert, key)| [&cert[..], &key[..]]);
        let parts = [&self.cert[..], &self.key].into_iter().chain(self.ca.as_deref()).chain(pair);
        let parts = parts.chain(self.client_ca.as_deref()).chain(self.crls.iter().map(Vec::as_slice));
        parts.fold(0, |digest: u64, part| {
            let number = u64::from(crc32fast::hash(part)) << 32 | part.len() as u64;
            digest.rotate_left(21).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number
        })
    }

    pub fn into_set(self, api: ApiTls) -> Result<Set, TlsError> {
        let digest = self.digest();
        let options = &self.options;
        let provider = Arc::new(ring::default_provider());
        let pair = Pair::of(&options.cert_file, &options.key_file, &self.cert, &self.key)?;
        let subject = parse(CERTIFICATE, &options.cert_file, &pair.chain[0])?.subject().to_string();
        let mut files = vec![expiry(FileKind::Certificate, CERTIFICATE, &options.cert_file, &pair.chain[..1])?];
        let ca = match (&options.ca_file, &self.ca) {
            (Some(path), Some(bytes)) => Some((path.as_path(), certificates(CA, path, bytes)?)),
            _ => None,
        };
        if let Some((path, roots)) = &ca {
            files.push(expiry(FileKind::Ca, CA, path, roots)?);
        }
        let (revoked, lists) = self.revoked()?;
        let outward = ca.as_ref().map(|(path, roots)| {
            let roots = store(path, roots.clone())?;
            pair.client(&provider, server_verifier(&provider, roots, path, &revoked)?)
        });
        let outward = outward.transpose()?.map(|mut config| {
            config.alpn_protocols = vec![b"h2".to_vec()];
            Arc::new(config)
        });
        let roots = ca.map(|(path, roots)| store(path, roots).map(|store| (path, store))).transpose()?;
        let missing = || TlsError::Missing { what: "ca_file" };
        let members = if options.members {
            let (path, roots) = roots.clone().ok_or_else(missing)?;
            verify::signed_by(&provider, &roots, &pair.chain).map_err(|error| TlsError::OtherCa {
                cert: options.cert_file.clone(),
                subject: subject.clone(),
                ca: path.to_owned(),
                why: rpc::tls_words::words(&error),
            })?;
            let server = pair.server(&provider, Some(client_verifier(&provider, &roots, path, &revoked)?))?;
            let chain = verify::Chain { roots, revoked: revoked.clone(), provider: provider.clone() };
            Some((Arc::new(server), Arc::new(pair.client(&provider, Arc::new(chain))?)))
        } else {
            None
        };
        let api_pair = match (&options.api_pair, &self.api_pair) {
            (Some((cert, key)), Some((cert_pem, key_pem))) => Some(Pair::of(cert, key, cert_pem, key_pem)?),
            _ => None,
        };
        if let Some(pair) = &api_pair {
            files.push(expiry(FileKind::ApiCertificate, CERTIFICATE, pair.cert_file, &pair.chain[..1])?);
        }
        let client_roots = match (&options.client_ca_file, &self.client_ca) {
            (Some(path), Some(bytes)) => {
                let roots = certificates(CA, path, bytes)?;
                files.push(expiry(FileKind::ClientCa, CA, path, &roots)?);
                Some((path.as_path(), store(path, roots)?))
            }
            _ => roots,
        };
        files.extend(lists);
        let api = match api {
            ApiTls::Off => None,
            ApiTls::Server => Some(None),
            ApiTls::Mutual => {
                let (path, roots) = client_roots.ok_or_else(missing)?;
                Some(Some(client_verifier(&provider, &roots, path, &revoked)?))
            }
        };
        let api = match api {
            None => None,
            Some(verifier) => {
                let mut config = api_pair.as_ref().unwrap_or(&pair).server(&provider, verifier)?;
                config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                Some(Arc::new(config))
            }
        };
        let own = pair.chain.into_iter().next().expect("a chain has a first certificate");
        Ok(Set { members, api, outward, own, revoked, subject, files, digest })
    }

    /// What the lists revoke, and when the next ones are due.
    fn revoked(&self) -> Result<(Arc<Revoked>, Vec<Expiry>), TlsError> {
        let (mut lists, mut files) = (Vec::new(), Vec::new());
        for (path, pem) in self.options.crl_files.iter().zip(&self.crls) {
            let invalid = |why: String| TlsError::Invalid { what: CRL, path: path.clone(), why };
            let (before, mut expires_s) = (lists.len(), i64::MAX);
            for der in CertificateRevocationListDer::pem_slice_iter(pem) {
                let der = der.map_err(|error| invalid(error.to_string()))?;
                let (_, list) =
                    CertificateRevocationList::from_der(&der).map_err(|error| invalid(error.to_string()))?;
                expires_s = list.next_update().map_or(expires_s, |at| expires_s.min(at.timestamp()));
                lists.push(der);
            }
            if lists.len() == before {
                return Err(TlsError::Empty { what: CRL, path: path.clone() });
            }
            files.push(Expiry { kind: FileKind::Crl, path: path.clone(), expires_s });
        }
        let revoked = Revoked::new(lists).map_err(|why| {
            let path = self.options.crl_files.first().cloned().unwrap_or_default();
            TlsError::Invalid { what: CRL, path, why }
        })?;
        Ok((Arc::new(revoked), files))
    }
}

/// A certificate and its key.
struct Pair<'a> {
    cert_file: &'a Path,
    key_file: &'a Path,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl<'a> Pair<'a> {
    fn of(cert_file: &'a Path, key_file: &'a Path, cert: &[u8], key: &[u8]) -> Result<Pair<'a>, TlsError> {
        let chain = certificates(CERTIFICATE, cert_file, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| TlsError::Empty { what: "private key", path: key_file.to_owned() })?;
        Ok(Pair { cert_file, key_file, chain, key })
    }

    fn server(
        &self,
        provider: &Arc<CryptoProvider>,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&VERSIONS)
            .map_err(|error| self.mismatch(&error))?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(self.chain.clone(), self.key.clone_key());
        let mut config = config.map_err(|error| self.mismatch(&error))?;
        // Every connection is checked against the set of its time.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn client(
        &self,
        provider: &Arc<CryptoProvider>,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Result<ClientConfig, TlsError> {
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&VERSIONS)
            .map_err(|error| self.mismatch(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key());
        let mut config = config.map_err(|error| self.mismatch(&error))?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn mismatch(&self, error: &rustls::Error) -> TlsError {
        TlsError::Mismatch {
            cert: self.cert_file.to_owned(),
            key: self.key_file.to_owned(),
            why: rpc::tls_words::words(error),
        }
    }
}

fn client_verifier(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    path: &Path,
    revoked: &Revoked,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .with_crls(revoked.lists())
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| TlsError::Invalid { what: CA, path: path.to_owned(), why: error.to_string() })
}

/// The chain, and the name that was asked for.
fn server_verifier(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    path: &Path,
    revoked: &Revoked,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
        .with_crls(revoked.lists())
        .allow_unknown_revocation_status()
        .build();
    verifier.map(|verifier| verifier as Arc<dyn ServerCertVerifier>).map_err(|error| TlsError::Invalid {
        what: CA,
        path: path.to_owned(),
        why: error.to_string(),
    })
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error| TlsError::Unreadable { what, path: path.to_owned(), error };
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// A key that others may read is no secret.
fn read_key(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error| TlsError::Unreadable { what: "private key", path: path.to_owned(), error };
    let mode = fs::metadata(path).map_err(unreadable)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::OpenKey { path: path.to_owned(), mode });
    }
    read("private key", path)
}

fn certificates(what: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::Invalid { what, path: path.to_owned(), why: error.to_string() })?;
    if all.is_empty() { Err(TlsError::Empty { what, path: path.to_owned() }) } else { Ok(all) }
}

fn parse<'a>(what: &'static str, path: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let parsed = X509Certificate::from_der(der);
    parsed.map(|(_, certificate)| certificate).map_err(|error| TlsError::Invalid {
        what,
        path: path.to_owned(),
        why: error.to_string(),
    })
}

/// When the first of a file's certificates expires.
fn expiry(
    kind: FileKind,
    what: &'static str,
    path: &Path,
    certificates: &[CertificateDer<'_>],
) -> Result<Expiry, TlsError> {
    let mut expires_s = i64::MAX;
    for certificate in certificates {
        expires_s = expires_s.min(parse(what, path, certificate)?.validity().not_after.timestamp());
    }
    Ok(Expiry { kind, path: path.to_owned(), expires_s })
}

fn store(path: &Path, roots: Vec<CertificateDer<'static>>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root).map_err(|error| TlsError::Invalid {
            what: CA,
            path: path.to_owned(),
            why: rpc::tls_words::words(&error),
        })?;
    }
    Ok(Arc::new(store))
}
