//! Certificates as etcd's flags and tonic's clients take them.

#[path = "../common/pki.rs"]
pub mod files;

use std::fs;

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub use files::Pki;

impl Pki {
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

    /// What a client of today brings along.
    pub fn client(&self) -> ClientTlsConfig {
        let read = |file: &str| fs::read(self.path(file)).unwrap();
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("client.crt"), read("client.key")))
    }
}
