//! The way to servers: certificates, and endpoints with or without a scheme.

use std::path::PathBuf;
use std::time::Duration;

use cli::endpoint::with_scheme;
use cli::failure::{CERTIFICATE_FILE, Failure};
use rpc::client::{Tls, TlsFiles};
use tonic::transport::Channel;

use crate::args::Global;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Args, Clone, Debug)]
pub struct Certificates {
    /// The CA that servers are trusted by, in PEM; with it, endpoints without a scheme are https:// [default: the system's
    /// CAs]
    #[arg(long, value_name = "FILE", global = true, env = "FLAREDB_CACERT")]
    cacert: Option<PathBuf>,
    /// The certificate to show to servers, in PEM
    #[arg(long, value_name = "FILE", global = true, env = "FLAREDB_CERT")]
    cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(id = "key-file", long = "key", value_name = "FILE", global = true, env = "FLAREDB_KEY")]
    key: Option<PathBuf>,
    /// The name that a server's certificate must hold, instead of the host in its URL
    #[arg(long, value_name = "NAME", global = true)]
    server_name: Option<String>,
    /// Believe any server's certificate. For looking into trouble only
    #[arg(long, global = true)]
    insecure_skip_tls_verify: bool,
}

impl Certificates {
    fn files(&self) -> TlsFiles {
        TlsFiles {
            ca: self.cacert.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            server_name: self.server_name.clone(),
            trust_anyone: self.insecure_skip_tls_verify,
        }
    }
}

/// A server's URL, and what it takes to speak to it.
pub fn reach(global: &Global, endpoint: &str) -> Result<(String, Option<Tls>), Failure> {
    let files = global.certificates.files();
    let url = with_scheme(endpoint, &files)?;
    let tls = url.starts_with("https://").then(|| load(&files)).transpose()?;
    Ok((url, tls))
}

fn load(files: &TlsFiles) -> Result<Tls, Failure> {
    Tls::load(files).map_err(|why| Failure::local(why).code(CERTIFICATE_FILE))
}

/// The same of several servers, where those may name others: certificates that are given count, whatever the URLs say.
pub fn reach_all(global: &Global, endpoints: &[String]) -> Result<(Vec<String>, Option<Tls>), Failure> {
    let files = global.certificates.files();
    let urls = endpoints.iter().map(|endpoint| with_scheme(endpoint, &files)).collect::<Result<Vec<_>, _>>()?;
    let wanted = files.ca.is_some() || files.cert.is_some() || files.trust_anyone;
    let secured = wanted || urls.iter().any(|url| url.starts_with("https://"));
    Ok((urls, secured.then(|| load(&files)).transpose()?))
}

pub async fn connect(global: &Global, endpoint: &str) -> Result<Channel, Failure> {
    let (url, tls) = reach(global, endpoint)?;
    let connected = rpc::client::connect(&url, CONNECT_TIMEOUT, tls.as_ref()).await;
    connected.map_err(|error| Failure::of_connection(endpoint, &error))
}
