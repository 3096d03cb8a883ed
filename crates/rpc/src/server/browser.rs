//! What web pages may ask: nothing, unless they come from this server itself.
//!
//! Whoever runs a server on loopback also runs a browser, and a page from anywhere may send requests to loopback: with a form,
//! with a script, or under a name that its owner points at 127.0.0.1. Browsers give themselves away:
//!
//! | what comes | allowed |
//! |---|---|
//! | no `Origin`, no `Sec-Fetch-Site`, no browser's `User-Agent` | always: a program |
//! | an `Origin` | if it is the `Host` that was asked |
//! | any sign of a browser | if the `Host` is an address, `localhost`, or a name under which the server is known |
//! | gRPC with an `Origin` | never: browsers do not speak it by themselves |

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, ORIGIN, USER_AGENT};

use super::metadata::Metadata;
use crate::{Code, Status};

/// Why a plain HTTP request is refused.
pub(super) fn refusal(headers: &HeaderMap, names: &[String]) -> Option<String> {
    let text =
        |value: Option<&http::HeaderValue>| value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let origin = text(headers.get(ORIGIN));
    let agent = text(headers.get(USER_AGENT)).unwrap_or_default();
    if origin.is_none() && !headers.contains_key("sec-fetch-site") && !agent.starts_with("Mozilla/") {
        return None;
    }
    let host = text(headers.get(HOST)).unwrap_or_default();
    if let Some(origin) = origin
        && origin.split_once("://").is_none_or(|(_, asking)| !asking.eq_ignore_ascii_case(&host))
    {
        return Some(format!("a page from {origin} may not ask this server"));
    }
    (!is_known(&host, names)).then(|| format!("this server is not known as {host}: ask it by its address"))
}

/// As [`refusal`], for gRPC.
pub(super) fn refuses_call(metadata: &Metadata) -> Option<Status> {
    let origin = String::from_utf8_lossy(metadata.get("origin")?);
    Some(Status::new(Code::PermissionDenied, format!("a page from {origin} may not call this server")))
}

fn is_known(host: &str, names: &[String]) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let name = without_port.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    let known = || names.iter().any(|known| known.eq_ignore_ascii_case(&name));
    name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost") || known()
}

/// The names in URLs under which clients are told to reach a server.
pub fn names_in<'a>(urls: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let parsed = urls.into_iter().filter_map(|url| url.parse::<http::Uri>().ok());
    parsed.filter(|url| url.scheme().is_some()).filter_map(|url| Some(url.host()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&'static str, &str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(*name, value.parse().unwrap());
        }
        refusal(&headers, &["etcd1.example".to_owned()])
    }

    #[test]
    fn programs_may_ask_by_any_name() {
        assert_eq!(asked(&[("host", "whatever.example:2379"), ("user-agent", "curl/8.0")]), None);
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let why = asked(&[("host", "127.0.0.1:2379"), ("origin", "http://evil.example")]).unwrap();
        assert!(why.contains("http://evil.example"), "{why}");
        assert!(asked(&[("host", "127.0.0.1:2379"), ("origin", "null")]).is_some());
        assert!(asked(&[("host", "127.0.0.1:2379"), ("origin", "http://127.0.0.1:3000")]).is_some(), "another port");
        assert_eq!(asked(&[("host", "127.0.0.1:2379"), ("origin", "http://127.0.0.1:2379")]), None);
    }

    #[test]
    fn a_browser_that_was_pointed_here_by_a_strange_name_is_refused() {
        for sign in [("origin", "http://evil.example:2379"), ("user-agent", "Mozilla/5.0"), ("sec-fetch-site", "none")]
        {
            assert!(asked(&[("host", "evil.example:2379"), sign]).is_some(), "{sign:?}");
        }
        for host in
            ["127.0.0.1:2379", "[::1]:2379", "localhost:2379", "etcd1.example:2379", "ETCD1.example.", "10.0.0.7"]
        {
            assert_eq!(asked(&[("host", host), ("user-agent", "Mozilla/5.0")]), None, "{host}");
        }
    }

    #[test]
    fn names_come_from_urls() {
        let urls = ["http://etcd1.example:2379", "https://10.0.0.7:2379", "nonsense"].map(str::to_owned);
        assert_eq!(names_in(&urls), ["etcd1.example", "10.0.0.7"]);
    }
}
