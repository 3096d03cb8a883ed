//! Who may call which method on the port for clients. There are no users and no roles: a certificate of the clients' authority
//! opens every method, and nothing else opens any; it is the handshake that refuses. A path that leads to no method is denied to
//! everybody.
//!
//! The methods are those of the table that the server itself dispatches by, so that none can be forgotten here.

use std::error::Error as _;
use std::fs;

use chainfire::api::METHODS;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::bad_requests::raw;
use crate::client::{CALL_TIMEOUT, Client};
use crate::cluster::{CLIENT_PORT, Cluster, Options, is_etcd};
use crate::pki::files::Authority;
use crate::tell::{figure, skipped};

/// Methods that are none, of services that are served here, of etcd's others, of another program of ours, and of nobody.
const NO_METHODS: [&str; 9] = [
    "/etcdserverpb.KV/Steal",
    "/etcdserverpb.kv/Range",
    "/centra.chainfire.v1.Admin/Steal",
    "/grpc.health.v1.Health/Watch",
    "/etcdserverpb.Auth/AuthEnable",
    "/v3lockpb.Lock/Lock",
    "/v3electionpb.Election/Campaign",
    "/centra.placement.v1.Placement/ClusterStatus",
    "/nobody.Nothing/Never",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_wants_a_clients_certificate() {
    if is_etcd() {
        return skipped("every_method", "an etcd has other methods");
    }
    let mut cluster = with_authorities_apart();
    let pki = cluster.pki();
    let trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pki.authority_pem()));
    let read = |file: &str| fs::read_to_string(pki.path(file)).unwrap();
    let showing =
        |(certificate, key): (String, String)| Some(trusting.clone().identity(Identity::from_pem(certificate, key)));
    let strangers = [
        ("without TLS", None),
        ("without a certificate", Some(trusting.clone())),
        ("by another authority", showing(Authority::new("other").sign("client", &["client"], false))),
        ("revoked", showing(pki.sign_revoked("left", &["client"]))),
        ("a member", showing((read("n1.crt"), read("n1.key")))),
    ];
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    let plain = format!("http://{}:{CLIENT_PORT}", cluster.nodes[0].address);

    let before = calls(&cluster).await;
    assert_eq!(before.len(), METHODS.len());
    for (who, tls) in &strangers {
        for (_, method) in METHODS {
            // One that was refused a connection may wait before it tries again.
            let client = match tls {
                Some(tls) => Client::secure(&cluster.endpoint(0), tls.clone(), CALL_TIMEOUT),
                None => Client::new(&plain),
            };
            assert_eq!(answer(&client, method).await, None, "{who}: {method}");
        }
    }
    assert_eq!(calls(&cluster).await, before, "no method has begun");

    let client = cluster.client(0);
    for (_, method) in METHODS {
        let answer = answer(&client, method).await;
        assert!(answer.is_some_and(|code| code != Code::Unimplemented), "{method}: {answer:?}");
    }
    // The node itself can tell who gets through.
    let after = calls(&cluster).await;
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:#?}\n{after:#?}");
    for path in NO_METHODS {
        assert_eq!(answer(&client, path).await, Some(Code::Unimplemented), "{path}");
    }
    assert_eq!(calls(&cluster).await, after, "no method has begun");
    figure(format_args!("access: {} methods, closed to {} kinds of strangers", METHODS.len(), strangers.len()));
}

/// A node, not started, that knows clients by another authority than members: a member's certificate is not a client's.
fn with_authorities_apart() -> Cluster {
    let mut cluster = Cluster::new(1, Options { tls: true, ..Options::default() });
    let (host, members) = (cluster.nodes[0].address.to_string(), Authority::new("members"));
    let (certificate, key) = members.sign("n1", &[&host], false);
    cluster.pki().put("n1", &certificate, &key);
    fs::write(cluster.pki().path("members.crt"), members.pem()).unwrap();
    cluster.pki().issue("api", &[&host]);
    for (flag, file) in [("peer-trusted-ca-file", "members.crt"), ("cert-file", "api.crt"), ("key-file", "api.key")] {
        let file = cluster.pki().path(file);
        cluster.set_flag(flag, file.display());
    }
    cluster
}

/// What the server says to an empty message; nothing if it was never asked: an error that has a cause comes from the way there.
async fn answer(client: &Client, method: &'static str) -> Option<Code> {
    match raw(client, method, b"").await {
        Ok(_) => Some(Code::Ok),
        Err(status) if status.source().is_some() => None,
        Err(status) => {
            assert_ne!(status.code(), Code::DeadlineExceeded, "{method} neither answers nor refuses");
            Some(status.code())
        }
    }
}

/// A line per method: how often it was called, as the node counts.
async fn calls(cluster: &Cluster) -> Vec<String> {
    let page = cluster.metrics(0).await;
    page.lines().filter(|line| line.starts_with("grpc_server_started_total{")).map(str::to_owned).collect()
}
