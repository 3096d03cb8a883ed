//! Where a server is, as people write it.

use rpc::client::TlsFiles;

use crate::failure::Failure;

/// An endpoint as it is used: with a scheme, which is https where a CA is named.
pub fn with_scheme(endpoint: &str, tls: &TlsFiles) -> Result<String, Failure> {
    let endpoint = endpoint.trim().trim_end_matches('/');
    if endpoint.is_empty() {
        return Err(Failure::usage("an endpoint is empty").advise("write host:port, such as 127.0.0.1:2379"));
    }
    match endpoint.split_once("://") {
        Some(("http" | "https", _)) => Ok(endpoint.to_owned()),
        Some((scheme, _)) => {
            Err(Failure::usage(format!("{endpoint}: `{scheme}` is not spoken here")).advise("use http:// or https://"))
        }
        None if tls.ca.is_some() || tls.trust_anyone => Ok(format!("https://{endpoint}")),
        None => Ok(format!("http://{endpoint}")),
    }
}
