//! Sets of files, made on the spot, good and bad.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use tempfile::TempDir;

use super::*;

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key for `names`, as PEM; without serverAuth if it is a client's.
    pub fn sign(&self, names: &[&str], client: bool, expired: bool) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Writes `ca.crt` and a pair for `names` into a folder.
    pub fn write(&self, folder: &Path, names: &[&str], expired: bool) -> TlsOptions {
        let (certificate, key) = self.sign(names, false, expired);
        let path = |name: &str| folder.join(name);
        fs::write(path("ca.crt"), self.0.pem()).unwrap();
        fs::write(path("node.crt"), certificate).unwrap();
        write_key(&path("node.key"), &key, 0o600);
        TlsOptions {
            program: Program::Chainfire,
            cert_file: path("node.crt"),
            key_file: path("node.key"),
            ca_file: Some(path("ca.crt")),
            api_pair: None,
            client_ca_file: None,
            crl_files: Vec::new(),
            api: ApiTls::Mutual,
            members: true,
        }
    }

    /// A list that names the certificate in a file, and when the next one is due.
    fn revoke(&self, certificate: &Path, next_update_year: i32) -> String {
        let pem = fs::read(certificate).unwrap();
        let der = CertificateDer::from_pem_slice(&pem).unwrap();
        let (_, parsed) =
            <x509_parser::prelude::X509Certificate<'_> as x509_parser::prelude::FromDer<'_, _>>::from_der(&der)
                .unwrap();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(parsed.raw_serial()),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(next_update_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

fn write_key(path: &Path, pem: &str, mode: u32) {
    let _ = fs::remove_file(path);
    fs::write(path, pem).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn refused(options: TlsOptions) -> String {
    Certificates::load(options).err().expect("refused").to_string()
}

#[test]
fn a_good_set_is_taken_and_names_its_node() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("ca");
    let names = |own: &[&str], node: u64, address: &str| {
        let certificates = Certificates::load(authority.write(folder.path(), own, false)).unwrap();
        assert!(certificates.stats().files.iter().all(|file| file.expires_s > 1_700_000_000));
        certificates.name_this_node(NodeId(node), address)
    };
    let numbered = ["chainfire-node-2", "10.0.0.2", "127.0.0.1", "localhost"];
    assert!(names(&numbered, 2, "h:1"));
    assert!(!names(&numbered, 3, "http://10.0.0.2:2380"), "a number is meant");
    assert!(names(&numbered, 0, "http://10.0.0.2:2380"), "a node without a number is known by its host");
    let hosts = &numbered[1..];
    assert!(names(hosts, 3, "http://10.0.0.2:2380"));
    for other in ["10.0.0.3:2380", "node3:2380", "127.0.0.1:2380", "localhost:2380"] {
        assert!(!names(hosts, 3, other), "{other}: loopback names nobody");
    }
}

#[test]
fn each_program_has_certificates_of_its_own() {
    let authority = Authority::new("ca");
    let names = |program: Program, own: &str, node: u64| {
        let (pem, _) = authority.sign(&[own, "10.0.0.2"], false, false);
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        names_member(program, &certificate, NodeId(node), ["10.0.0.2:2380"])
    };
    for program in Program::ALL {
        for other in Program::ALL {
            let own = other.name_of(NodeId(2));
            match names(program, &own, 2) {
                Ok(vouched) => assert_eq!((program, vouched), (other, Some(Vouched::ByNumber))),
                Err(why) => assert!(program != other && why.contains(&own) && why.contains("another program"), "{why}"),
            }
        }
        assert_eq!(names(program, &program.name_of(NodeId(3)), 2), Ok(None), "a number is meant");
        assert_eq!(names(program, "somewhere", 2), Ok(Some(Vouched::ByHost)));
    }
}

#[test]
fn hosts_are_cut_out() {
    for (address, host) in
        [("n1:2380", "n1"), ("http://n1:2380/x", "n1"), ("[::1]:2380", "::1"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1")]
    {
        assert_eq!(host_of(address), host);
    }
}

#[test]
fn what_is_unsafe_or_does_not_fit_is_refused_with_its_file_named() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("ca");
    let options = authority.write(folder.path(), &["chainfire-node-1"], false);

    let key = fs::read_to_string(&options.key_file).unwrap();
    write_key(&options.key_file, &key, 0o644);
    let why = refused(options.clone());
    assert!(why.contains("mode 0644") && why.contains("chmod 600"), "{why}");

    write_key(&options.key_file, &KeyPair::generate().unwrap().serialize_pem(), 0o600);
    assert!(refused(options.clone()).contains("do not belong together"));

    write_key(&options.key_file, "no key", 0o600);
    assert!(refused(options.clone()).contains("no PEM private key"));

    write_key(&options.key_file, &key, 0o600);
    let other = TempDir::new().unwrap();
    let theirs = Authority::new("other").write(other.path(), &["x"], false);
    let ca_file = options.ca_file.clone().unwrap();
    fs::copy(theirs.ca_file.unwrap(), &ca_file).unwrap();
    let why = refused(options.clone());
    assert!(why.contains("certificate verify failed") && why.contains("same CA"), "{why}");

    fs::remove_file(&ca_file).unwrap();
    assert!(refused(options).contains("generate-dev-certs.sh"));
}

#[test]
fn a_reload_takes_a_good_set_and_keeps_the_old_one_otherwise() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("ca");
    let options = authority.write(folder.path(), &["chainfire-node-1"], false);
    let certificates = Certificates::load(options.clone()).unwrap();
    assert_eq!(certificates.reload(), Ok(false));
    let before = certificates.server();

    fs::write(&options.cert_file, "half a certific").unwrap();
    assert!(certificates.reload().is_err());
    assert!(Arc::ptr_eq(&before, &certificates.server()));

    // What the others would refuse, while what is in use is good.
    assert!(certificates.name_this_node(NodeId(1), "10.0.0.1:2380"));
    authority.write(folder.path(), &["chainfire-node-1"], true);
    assert!(certificates.reload().unwrap_err().contains("has expired already"));
    authority.write(folder.path(), &["chainfire-node-7"], false);
    assert!(certificates.reload().unwrap_err().contains("does not name this node"));
    assert!(Arc::ptr_eq(&before, &certificates.server()));

    authority.write(folder.path(), &["chainfire-node-1"], false);
    assert_eq!(certificates.reload(), Ok(true));
    assert!(!Arc::ptr_eq(&before, &certificates.server()));
    let stats = certificates.stats();
    assert_eq!((stats.reloads, stats.failed_reloads), (1, 3));
}

#[test]
fn an_expired_set_is_loaded_so_that_it_can_be_replaced() {
    let folder = TempDir::new().unwrap();
    let certificates =
        Certificates::load(Authority::new("ca").write(folder.path(), &["chainfire-node-1"], true)).unwrap();
    assert!(certificates.set().expires_s(&[FileKind::Certificate]) < 1_600_000_000);
}

#[test]
fn who_is_on_a_revocation_list_is_refused() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let authority = Authority::new("ca");
    let mut options = authority.write(folder.path(), &["chainfire-node-1"], false);
    let theirs = authority.write(other.path(), &["chainfire-node-2"], false);
    let pem = fs::read(&theirs.cert_file).unwrap();
    let theirs_der = CertificateDer::from_pem_slice(&pem).unwrap();
    let judge = |list: &str| {
        let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.0.pem().as_bytes()).unwrap()).unwrap();
        let chain = verify::Chain {
            roots: Arc::new(roots),
            revoked: Arc::new(verify::Revoked::new(vec![list]).unwrap()),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        };
        let name = ServerName::try_from("x").unwrap();
        chain.verify_server_cert(&theirs_der, &[], &name, &[], UnixTime::now()).map(drop)
    };
    assert_eq!(judge(&authority.revoke(&options.cert_file, 2100)), Ok(()), "another one is revoked");
    let list = authority.revoke(&theirs.cert_file, 2025);
    let why = rpc::tls_words::words(&judge(&list).unwrap_err());
    assert_eq!(why, "certificate verify failed: revoked", "also by a list past its next update");
    assert_eq!(judge(&Authority::new("other").revoke(&theirs.cert_file, 2100)), Ok(()), "not by a list of another CA");

    let crl_file = folder.path().join("ca.crl");
    options.crl_files = vec![crl_file.clone()];
    assert!(refused(options.clone()).contains("cannot read"));
    fs::write(&crl_file, "no list").unwrap();
    assert!(refused(options.clone()).contains("no PEM revocation list"));
    fs::write(&crl_file, authority.revoke(&options.cert_file, 2100)).unwrap();
    let certificates = Certificates::load(options).unwrap();
    fs::write(&crl_file, list).unwrap();
    assert_eq!(certificates.reload(), Ok(true), "a new list is a change");
    assert_eq!(certificates.set().expires_s(&[FileKind::Crl]), 1_735_689_600);
}
