//! Certificates of a cluster: a CA, a pair for each node and one for clients, in a folder of the cluster's; and somebody who
//! knocks at a port with one, or without.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use rpc::client::TlsFiles;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub struct Pki {
    folder: PathBuf,
    authority: Mutex<Authority>,
}

/// The serial number of certificates that may be revoked.
const REVOCABLE: u64 = 4711;

/// Signs; several may be trusted at a time.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A list of revoked certificates, as PEM.
    fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(serials.len() as u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// A certificate and its key, as PEM.
    pub fn sign(&self, name: &str, hosts: &[&str], expired: bool) -> (String, String) {
        self.sign_with(name, hosts, |params| {
            if expired {
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
            }
        })
    }

    /// As [`Authority::sign`], after further changes to what is signed.
    fn sign_with(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let san = |host: &&str| match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*host).try_into().unwrap()),
        };
        params.subject_alt_names = hosts.iter().map(san).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

impl Pki {
    pub fn new(folder: &Path) -> Pki {
        fs::create_dir_all(folder).unwrap();
        let pki = Pki { folder: folder.to_owned(), authority: Mutex::new(Authority::new("ca")) };
        pki.trust(&[&pki.authority.lock().pem()]);
        replace(&pki.path("ca.crl"), &pki.authority.lock().revoke(&[]), 0o644);
        pki.issue_client();
        pki
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// What nodes trust from here on.
    pub fn trust(&self, authorities: &[&str]) {
        replace(&self.path("ca.crt"), &authorities.concat(), 0o644);
    }

    pub fn authority_pem(&self) -> String {
        self.authority.lock().pem()
    }

    /// The CA that signs from here on; returns the one before.
    pub fn change_authority(&self, authority: Authority) -> Authority {
        std::mem::replace(&mut *self.authority.lock(), authority)
    }

    /// Signs and leaves `NAME.crt` and `NAME.key`.
    pub fn issue(&self, name: &str, hosts: &[&str]) {
        let (certificate, key) = self.authority.lock().sign(name, hosts, false);
        self.put(name, &certificate, &key);
    }

    /// The clients' pair, of no use to a member.
    pub fn issue_client(&self) {
        let client_only = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        };
        let (certificate, key) = self.authority.lock().sign_with("client", &["client"], client_only);
        self.put("client", &certificate, &key);
    }

    pub fn sign(&self, name: &str, hosts: &[&str], expired: bool) -> (String, String) {
        self.authority.lock().sign(name, hosts, expired)
    }

    /// A certificate that the list `ca.crl` of the CA names.
    pub fn sign_revoked(&self, name: &str, hosts: &[&str]) -> (String, String) {
        let pair = self.sign_revocable(name, hosts);
        self.revoke();
        pair
    }

    /// A certificate that [`Pki::revoke`] revokes.
    pub fn sign_revocable(&self, name: &str, hosts: &[&str]) -> (String, String) {
        let numbered = |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from(REVOCABLE));
        self.authority.lock().sign_with(name, hosts, numbered)
    }

    pub fn revoke(&self) {
        replace(&self.path("ca.crl"), &self.authority.lock().revoke(&[REVOCABLE]), 0o644);
    }

    pub fn put(&self, name: &str, certificate: &str, key: &str) {
        replace(&self.path(&format!("{name}.key")), key, 0o600);
        replace(&self.path(&format!("{name}.crt")), certificate, 0o644);
    }

    /// For clients of our own.
    pub fn client_files(&self) -> TlsFiles {
        let path = |file: &str| Some(self.path(file));
        TlsFiles { ca: path("ca.crt"), cert: path("client.crt"), key: path("client.key"), ..TlsFiles::default() }
    }
}

/// At once, as whoever distributes certificates should.
fn replace(path: &Path, text: &str, mode: u32) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// Where clients are served, in the protocols of HTTP.
const HTTP_PORT: u16 = 2379;

/// Whoever knocks with this, if with anything.
pub struct Caller {
    pub pair: Option<(String, String)>,
    pub trusts: String,
}

impl Caller {
    /// Shakes hands and says something on a port; the answer, or the error.
    pub fn call(&self, address: (Ipv4Addr, u16), words: &[u8]) -> Result<Vec<u8>, String> {
        let mut stream = self.connect(address);
        stream.write_all(words).map_err(|error| error.to_string())?;
        let mut answer = vec![0; 4096];
        match stream.read(&mut answer) {
            Ok(0) => Err("closed".to_owned()),
            Ok(length) => Ok(answer[..length].to_vec()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A connection whose handshake comes with the first bytes that are written or read.
    pub fn connect(&self, address: (Ipv4Addr, u16)) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.trusts.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.pair {
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = if address.1 == HTTP_PORT { vec![b"http/1.1".to_vec()] } else { Vec::new() };
        let name = ServerName::IpAddress(IpAddr::V4(address.0).into());
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
    }
}
