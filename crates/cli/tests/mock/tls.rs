//! TLS for the mock, and certificates for all that can be wrong with them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rpc::server::{Server, Service};
use rpc::tls_words::SPEAKS_TLS;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A CA and the folder that its certificates go to.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ca.crt"), issuer.pem()).unwrap();
        Authority { issuer, folder }
    }

    /// Where a file of this CA lies.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// Makes `NAME.crt` and `NAME.key`, valid for `hosts`, or expired long ago.
    pub fn certify(&self, name: &str, hosts: &[&str], expired: bool) {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 3);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.crt")), certificate.pem()).unwrap();
        let file = self.file(&format!("{name}.key"));
        fs::write(&file, key.serialize_pem()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A server that shows `NAME.crt` and, if so asked, wants a certificate of this CA from its clients.
    pub fn server(&self, name: &str, mutual: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let certificate = CertificateDer::from_pem_file(self.file(&format!("{name}.crt"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap();
        let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// One port: TLS for those who speak it, and a word for those who do not.
pub async fn serve<S: Service>(server: Arc<Server<S>>, listener: TcpListener, config: Arc<ServerConfig>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    loop {
        let (mut tcp, peer) = listener.accept().await.unwrap();
        let (server, acceptor) = (server.clone(), acceptor.clone());
        tokio::spawn(async move {
            let mut first = [0];
            if tcp.peek(&mut first).await.is_ok() && first[0] != 0x16 {
                refuse(&mut tcp).await;
            } else if let Ok(stream) = acceptor.accept(tcp).await {
                server.serve_connection(stream, peer).await;
            }
        });
    }
}

/// Settings and a GOAWAY whose debug data say it.
async fn refuse(tcp: &mut TcpStream) {
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let length = 8 + SPEAKS_TLS.len() as u8;
    bytes.extend_from_slice(&[0, 0, length, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13]);
    bytes.extend_from_slice(SPEAKS_TLS.as_bytes());
    let _ = tcp.write_all(&bytes).await;
    let _ = tcp.shutdown().await;
    // Until the client is gone: to close with unread bytes would take the answer from it.
    let mut rest = [0; 1024];
    while tcp.read(&mut rest).await.is_ok_and(|count| count > 0) {}
}
