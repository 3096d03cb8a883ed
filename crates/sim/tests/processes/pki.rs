//! Certificates of a cluster: a CA, a pair for each node and one for clients, in a folder of the cluster's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use rpc::client::TlsFiles;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub struct Pki {
    folder: PathBuf,
    authority: Mutex<Authority>,
}

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
        let authority = self.authority.lock();
        let serial = 4711;
        replace(&self.path("ca.crl"), &authority.revoke(&[serial]), 0o644);
        authority.sign_with(name, hosts, |params| params.serial_number = Some(SerialNumber::from(serial)))
    }

    pub fn put(&self, name: &str, certificate: &str, key: &str) {
        replace(&self.path(&format!("{name}.key")), key, 0o600);
        replace(&self.path(&format!("{name}.crt")), certificate, 0o644);
    }

    /// etcd's flags of a node.
    pub fn flags(&self, name: &str) -> Vec<(&'static str, String)> {
        let path = |file: String| self.path(&file).display().to_string();
        let (cert, key, ca) = (path(format!("{name}.crt")), path(format!("{name}.key")), path("ca.crt".to_owned()));
        vec![
            ("cert-file", cert.clone()),
            ("key-file", key.clone()),
            ("trusted-ca-file", ca.clone()),
            ("client-cert-auth", "true".to_owned()),
            ("peer-cert-file", cert),
            ("peer-key-file", key),
            ("peer-trusted-ca-file", ca),
            ("client-crl-file", path("ca.crl".to_owned())),
        ]
    }

    /// The same for clients of our own.
    pub fn client_files(&self) -> TlsFiles {
        let path = |file: &str| Some(self.path(file));
        TlsFiles { ca: path("ca.crt"), cert: path("client.crt"), key: path("client.key"), ..TlsFiles::default() }
    }

    /// What a client of today brings along.
    pub fn client(&self) -> ClientTlsConfig {
        let read = |file: &str| fs::read(self.path(file)).unwrap();
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("client.crt"), read("client.key")))
    }
}

/// At once, as whoever distributes certificates should.
fn replace(path: &Path, text: &str, mode: u32) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(temporary, path).unwrap();
}
