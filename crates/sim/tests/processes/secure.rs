//! Certificates on every port: who is let in, who is refused and in which words, and how certificates are changed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{ClusterId, NodeId, PeerId};
use node::transport::frame::{self, Hello, Purpose};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::client::{Client, outcome};
use crate::cluster::{CLIENT_PORT, Cluster, GOSSIP_PORT, Options, PATIENCE, PEER_PORT};
use crate::gossip::wait_for_all_alive;
use crate::pki::files::{Authority, Caller};
use crate::tell::figure;

fn secure() -> Options {
    Options { tls: true, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_clients_show_certificates() {
    let mut cluster = Cluster::start_with(3, secure()).await;
    for index in 0..3 {
        cluster.client(index).put(&format!("key-{index}"), "value").await.unwrap();
    }
    // A member that comes back under TLS catches up.
    cluster.kill(1);
    cluster.client(0).put("while-away", "yes").await.unwrap();
    cluster.spawn(1);
    cluster.wait_until_serving(1).await;
    assert_eq!(cluster.client(1).get("while-away").await.unwrap().count, 1);

    let pki = cluster.pki();
    let etcdctl = |arguments: &[&str]| {
        let output =
            Command::new("etcdctl").env("ETCDCTL_API", "3").args(arguments).output().expect("etcdctl is installed");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let (endpoint, path) = (cluster.endpoint(0), |file: &str| pki.path(file).display().to_string());
    let (ca, cert, key) = (path("ca.crt"), path("client.crt"), path("client.key"));
    let with = ["--endpoints", &endpoint, "--cacert", &ca, "--cert", &cert, "--key", &key];
    let listed = etcdctl(&[&with[..], &["member", "list"]].concat());
    assert_eq!(listed.matches("https://").count(), 6, "{listed}");
    let without = ["--endpoints", &endpoint, "--cacert", &ca, "--command-timeout", "2s"];
    let refused = etcdctl(&[&without[..], &["get", "key-0"]].concat());
    assert!(!refused.contains("value"), "a client without a certificate is not served: {refused}");
    assert!(
        cluster.log(0).contains("certificate verify failed: the other side showed no certificate"),
        "the log says why"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_tls_is_told_so() {
    let cluster = Cluster::start_with(1, secure()).await;
    let address = cluster.nodes[0].address;
    for port in [CLIENT_PORT, PEER_PORT, GOSSIP_PORT] {
        let told = |request: &[u8]| {
            let mut stream = TcpStream::connect((address, port)).unwrap();
            stream.write_all(request).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        };
        let answer = told(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("use https://"), "{port}: {answer}");
        let answer = told(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(answer.contains("use https://"), "{port}: the debug data of a GOAWAY");
    }
    let plain = Client::new(&format!("http://{address}:{CLIENT_PORT}"));
    assert!(plain.get("x").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_on_each_port() {
    let cluster = Cluster::start_with(3, secure()).await;
    let (pki, address) = (cluster.pki(), cluster.nodes[0].address);
    let trusts = pki.authority_pem();
    let known = cluster.nodes[1].address.to_string();
    let other = Authority::new("other");
    let before = cluster.log(0).len();
    let revoked = pki.sign_revoked("left", &[&known]);
    cluster.signal(0, libc::SIGHUP);
    wait_for_words(&cluster, before, &["Certificates are in use"]).await;
    let caller = |pair| Caller { pair, trusts: trusts.clone() };
    let http = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let member = cluster.member(0, 1).await.unwrap();
    let me = Hello {
        purpose: Purpose::Call,
        cluster: ClusterId(0),
        node: NodeId(member.id),
        peer: PeerId(7),
        address: format!("https://{known}:{PEER_PORT}"),
    };
    let mut hello = Vec::new();
    frame::put(&mut hello, &me.encode());

    // Whom it lets in shows that the others are refused for what they are.
    let good = || Some(pki.sign("good", &[&known], false));
    assert!(caller(good()).call((address, CLIENT_PORT), http).unwrap().starts_with(b"HTTP/1.1 200"));
    assert!(caller(good()).call((address, PEER_PORT), &hello).is_ok());
    assert!(caller(good()).call((address, GOSSIP_PORT), &[]).is_ok(), "it is greeted");

    let strangers = [
        ("without a certificate", None, "showed no certificate"),
        ("by another CA", Some(other.sign("other", &[&known], false)), "unknown CA"),
        ("expired", Some(pki.sign("old", &[&known], true)), "expired on"),
        ("revoked", Some(revoked), "revoked"),
    ];
    for (what, pair, words) in strangers {
        for port in [CLIENT_PORT, PEER_PORT, GOSSIP_PORT] {
            let before = cluster.log(0).len();
            let caller = caller(pair.clone());
            let answer = caller.call((address, port), if port == CLIENT_PORT { http } else { &hello });
            assert!(answer.is_err(), "{what} on {port}");
            wait_for_words(&cluster, before, &["certificate verify failed", words]).await;
        }
    }
    // A good certificate, but not that of the member it is shown for.
    let wrong_name = caller(Some(pki.sign("else", &["127.9.9.9"], false)));
    let before = cluster.log(0).len();
    let answer = wrong_name.call((address, PEER_PORT), &hello).unwrap();
    assert!(welcome(&answer).refusal().unwrap().contains("tls: bad certificate"));
    wait_for_words(&cluster, before, &["does not belong to node"]).await;
    // Nobody noticed.
    cluster.client(2).put("still", "here").await.unwrap();
}

/// One CA signs members, another one clients: the certificates of either open nothing of the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_clients_may_have_authorities_of_their_own() {
    let mut cluster = Cluster::new(3, secure());
    let clients = Authority::new("clients");
    let file = cluster.pki().path("clients.crt");
    fs::write(&file, clients.pem()).unwrap();
    let (certificate, key) = clients.sign("client", &["client"], false);
    cluster.pki().put("client", &certificate, &key);
    cluster.set_flag("trusted-ca-file", file.display());
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    cluster.client(0).put("by-a-client", "1").await.unwrap();

    let (pki, address) = (cluster.pki(), cluster.nodes[0].address);
    let known = cluster.nodes[1].address.to_string();
    let caller = |pair| Caller { pair: Some(pair), trusts: pki.authority_pem() };
    // Neither can be refused for its name.
    let client = caller(clients.sign("client", &[&known], false));
    let member = caller(pki.sign("member", &[&known], false));
    let http = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec();
    let node = NodeId(cluster.member(0, 1).await.unwrap().id);
    let address_of_member = format!("https://{known}:{PEER_PORT}");
    let me = Hello { purpose: Purpose::Call, cluster: ClusterId(0), node, peer: PeerId(7), address: address_of_member };
    let mut hello = Vec::new();
    frame::put(&mut hello, &me.encode());
    for (port, words, good, bad) in [
        (CLIENT_PORT, &http, &client, &member),
        (PEER_PORT, &hello, &member, &client),
        (GOSSIP_PORT, &hello, &member, &client),
    ] {
        assert!(good.call((address, port), words).is_ok(), "its own are let in on {port}");
        let before = cluster.log(0).len();
        assert!(bad.call((address, port), words).is_err(), "let in on {port}");
        wait_for_words(&cluster, before, &["certificate verify failed", "unknown CA"]).await;
    }
    cluster.client(2).put("still", "here").await.unwrap();
}

/// On the gossip port nobody speaks for a member whom the certificate does not name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_gossips_for_its_owner_alone() {
    let cluster = Cluster::start_with(3, secure()).await;
    let pki = cluster.pki();
    let known = cluster.nodes[1].address.to_string();
    let read = |file: &str| fs::read_to_string(pki.path(file)).unwrap();
    let caller = |pair| Caller { pair: Some(pair), trusts: pki.authority_pem() };
    let good = || caller(pki.sign("good", &[&known], false));
    // What the second node says of itself when somebody connects: magic, version, a number, and who it is.
    const NUMBER: std::ops::Range<usize> = 5..21;
    let greeting = |stream: &mut dyn std::io::Read| frame::read(&mut &mut *stream, 4096).unwrap();
    let second = greeting(&mut good().connect((cluster.nodes[1].address, GOSSIP_PORT)));
    let claim = |caller: Caller| {
        let mut stream = caller.connect((cluster.nodes[0].address, GOSSIP_PORT));
        let mut hello = second.to_vec();
        hello[NUMBER].copy_from_slice(&greeting(&mut stream)[NUMBER]);
        let mut bytes = Vec::new();
        frame::put(&mut bytes, &hello);
        stream.write_all(&bytes).unwrap();
        frame::read(&mut stream, 4096).unwrap().to_vec()
    };
    const WELCOME: [u8; 1] = [0];
    const WRONG_NAME: [u8; 1] = [2];
    assert_eq!(claim(good()), WELCOME, "who is named is let in");
    let strangers = [
        ("nobody's", pki.sign("else", &["127.9.9.9"], false)),
        ("the third member's", (read("n3.crt"), read("n3.key"))),
        ("a client's", (read("client.crt"), read("client.key"))),
    ];
    for (what, pair) in strangers {
        assert_eq!(claim(caller(pair)), WRONG_NAME, "{what}");
    }
    cluster.wait_until_said(0, "why=certificate verify failed: it names neither chainfire-node-").await;
    wait_for_words(&cluster, 0, &["Closed a connection on the gossip port", "does not belong to node"]).await;
    let expired = pki.sign("old", &[&known], true);
    let mut stream = caller(expired).connect((cluster.nodes[0].address, GOSSIP_PORT));
    assert!(stream.read_to_end(&mut Vec::new()).is_err(), "an expired certificate is not greeted");
    cluster.wait_until_said(0, "why=certificate verify failed: expired on ").await;
}

/// A server whose certificate names another host is no server to a client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_refuses_a_server_of_another_name() {
    let mut cluster = Cluster::new(1, secure());
    cluster.pki().issue("else", &["127.9.9.9"]);
    let path = |cluster: &Cluster, file: &str| cluster.pki().path(file).display().to_string();
    for (flag, file) in [("cert-file", "else.crt"), ("key-file", "else.key")] {
        let file = path(&cluster, file);
        cluster.set_flag(flag, file);
    }
    cluster.spawn(0);
    cluster.wait_until_said(0, "ready to serve client requests").await;
    let ask = |name: &[&str]| {
        let mut client = Command::new(crate::cluster::program().with_file_name("chainfire-client"));
        client.args(["--endpoint", &cluster.endpoint(0), "--cacert", &path(&cluster, "ca.crt")]);
        client.args(["--cert", &path(&cluster, "client.crt"), "--key", &path(&cluster, "client.key")]);
        let output = client.args(name).args(["put", "key", "value"]).output().expect("chainfire-client was built");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (done, said) = ask(&[]);
    assert!(!done && said.contains("certificate verify failed") && said.contains("not valid for"), "{said}");
    // For its name, and for nothing else.
    let (done, said) = ask(&["--server-name", "127.9.9.9"]);
    assert!(done, "{said}");
}

fn welcome(answer: &[u8]) -> frame::Welcome {
    frame::Welcome::decode(&frame::read(&mut &*answer, frame::SMALL_BYTES_MAX).unwrap()).unwrap()
}

/// A client's certificate opens the client port alone, a member's speaks for that member alone, and no message makes the term
/// leap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_speaks_for_its_owner_alone() {
    let cluster = Cluster::start_with(3, secure()).await;
    let (pki, address) = (cluster.pki(), cluster.nodes[0].address);
    let read = |file: &str| fs::read_to_string(pki.path(file)).unwrap();
    let caller = |name: &str| Caller {
        pair: Some((read(&format!("{name}.crt")), read(&format!("{name}.key")))),
        trusts: pki.authority_pem(),
    };
    let status = cluster.client(0).admin_status().await;
    let member = |index: usize| {
        let url = cluster.peer_url(index);
        status.members.iter().find(|member| member.peer_urls.contains(&url)).unwrap().clone()
    };
    let (second, third) = (member(1), member(2));
    let hello = |purpose, node: u64, peer: u64, address: String| {
        let cluster = ClusterId(status.cluster_id);
        let mut bytes = Vec::new();
        frame::put(&mut bytes, &Hello { purpose, cluster, node: NodeId(node), peer: PeerId(peer), address }.encode());
        bytes
    };
    let url = cluster.peer_url(1);

    for purpose in [Purpose::Messages, Purpose::Snapshot, Purpose::Call] {
        let before = cluster.log(0).len();
        let stranger = hello(purpose, 999, 999, "client:2380".to_owned());
        let answer = caller("client").call((address, PEER_PORT), &stranger).unwrap();
        assert!(welcome(&answer).refusal().is_some(), "a client on the Raft port: {purpose:?}");
        assert_eq!(welcome(&answer).cluster, ClusterId(0), "who is not let in learns nothing");
        if purpose == Purpose::Messages {
            wait_for_words(&cluster, before, &["it is not made for members"]).await;
        }
    }
    let before = cluster.log(0).len();
    let posing = hello(Purpose::Messages, second.node_id, third.peer_id, url.clone());
    assert!(welcome(&caller("n2").call((address, PEER_PORT), &posing).unwrap()).refusal().is_some());
    wait_for_words(&cluster, before, &["belongs to node", "and not to node"]).await;

    let mut forged = hello(Purpose::Messages, second.node_id, second.peer_id, url);
    let heartbeat = raft::eraftpb::Message {
        msg_type: raft::eraftpb::MessageType::MsgHeartbeat as i32,
        from: second.peer_id,
        to: status.peer_id,
        term: u64::MAX,
        ..Default::default()
    };
    let message = consensus::Message {
        group: node::node::GROUP,
        from: PeerId(second.peer_id),
        from_node: NodeId(second.node_id),
        to: PeerId(status.peer_id),
        body: consensus::wire::Body::Raft(Box::new(heartbeat)),
    };
    frame::put(&mut forged, &message.encode());
    let before = cluster.log(0).len();
    caller("n2").call((address, PEER_PORT), &forged).unwrap();
    wait_for_words(&cluster, before, &["a term from far away"]).await;
    cluster.client(2).put("still", "here").await.unwrap();
    let term = cluster.client(0).admin_status().await.raft_term;
    assert!(term <= status.raft_term + 10, "{term}");
}

/// Whoever shook hands before its certificate was revoked does not stay; everybody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_cut() {
    let mut cluster = Cluster::start_with(3, secure()).await;
    let (victim, address) = (1, cluster.nodes[0].address);
    let known = cluster.nodes[victim].address.to_string();
    let (certificate, key) = cluster.pki().sign_revocable("left", &[&known]);
    cluster.pki().put(&cluster.nodes[victim].name, &certificate, &key);
    cluster.kill(victim);
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    wait_for_all_alive(&cluster).await;

    let trusts = cluster.pki().authority_pem();
    let left = Caller { pair: Some((certificate, key)), trusts: trusts.clone() };
    let good = Caller { pair: Some(cluster.pki().sign("good", &[&known], false)), trusts };
    let ask = |stream: &mut dyn ReadWrite| {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = [0; 1024];
        stream.read(&mut answer).map(|length| String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    let mut stays = good.connect((address, CLIENT_PORT));
    assert!(ask(&mut stays).unwrap().contains("200 OK"));
    let mut goes: Vec<_> = [CLIENT_PORT, PEER_PORT, GOSSIP_PORT].map(|port| left.connect((address, port))).into();
    assert!(ask(&mut goes[0]).unwrap().contains("200 OK"));
    for silent in &mut goes[1..] {
        while silent.conn.is_handshaking() {
            silent.conn.complete_io(&mut silent.sock).unwrap();
        }
    }

    let before = cluster.log(0).len();
    cluster.pki().revoke();
    cluster.signal(0, libc::SIGHUP);
    wait_for_words(&cluster, before, &["Cut connections whose certificates were revoked"]).await;
    for (stream, port) in goes.iter_mut().zip([CLIENT_PORT, PEER_PORT, GOSSIP_PORT]) {
        let since = Instant::now();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let waited = ended.is_err_and(|why| why.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!waited && since.elapsed() < Duration::from_secs(5), "{port}: it stays");
    }
    assert!(ask(&mut stays).unwrap().contains("HTTP/1.1"), "with a good certificate it stays");
    // The member, too, and it does not come back with that certificate.
    wait_for_words(&cluster, before, &["certificate verify failed: revoked"]).await;
    cluster.pki().issue(&cluster.nodes[victim].name, &[&known]);
    cluster.signal(victim, libc::SIGHUP);
    cluster.client(0).put("k", "v").await.unwrap();
    cluster.wait_until_serving(victim).await;
    assert_eq!(cluster.client(victim).get("k").await.unwrap().count, 1);
    wait_for_all_alive(&cluster).await;
}

trait ReadWrite: std::io::Read + std::io::Write {}

impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

async fn wait_for_words(cluster: &Cluster, before: usize, words: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    while !words.iter().all(|words| cluster.log(0)[before..].contains(words)) {
        assert!(Instant::now() < deadline, "{words:?} are not in the log");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_unsafe_or_wrong_files_does_not_start() {
    let mut cluster = Cluster::new(1, secure());
    let key = cluster.pki().path("n1.key");
    let address = cluster.nodes[0].address.to_string();
    type Spoil<'a> = &'a dyn Fn(&Cluster);
    let cases: [(Spoil<'_>, &[&str]); 5] = [
        (&|_| fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap(), &["mode 0644", "chmod 600"]),
        (&|cluster| cluster.pki().issue("n1", &["127.9.9.9"]), &["names neither", "generate-dev-certs.sh"]),
        (
            &|cluster| cluster.pki().issue("n1", &["chainfire-node-1", &address]),
            &["the number of another node", "generate-dev-certs.sh --by-host"],
        ),
        (
            &|cluster| {
                let (certificate, key) = Authority::new("other").sign("n1", &[&address], false);
                cluster.pki().put("n1", &certificate, &key);
            },
            &["certificate verify failed", "same CA"],
        ),
        (&|cluster| fs::remove_file(cluster.pki().path("ca.crt")).unwrap(), &["cannot read", "ca.crt"]),
    ];
    for (spoil, words) in cases {
        cluster.pki().trust(&[&cluster.pki().authority_pem()]);
        cluster.pki().issue("n1", &[&address]);
        spoil(&cluster);
        let output = cluster.command(0).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|words| said.contains(words)) && said.lines().count() == 1, "{said}");
    }
    cluster.pki().trust(&[&cluster.pki().authority_pem()]);
    cluster.pki().issue("n1", &[&address]);
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
}

/// The pair that clients see may be another one. Its key is as much of a secret, at a start and at a reload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_clients_that_others_may_read_is_not_used() {
    let mut cluster = Cluster::new(1, secure());
    let (host, key) = (cluster.nodes[0].address.to_string(), cluster.pki().path("api.key"));
    cluster.pki().issue("api", &[&host]);
    for (flag, file) in [("cert-file", "api.crt"), ("key-file", "api.key")] {
        let file = cluster.pki().path(file);
        cluster.set_flag(flag, file.display());
    }
    let set_mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    let words = format!("key file {0} may be read by others (mode 0644): chmod 600 {0}", key.display());
    set_mode(0o644);
    let output = cluster.command(0).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(&words), "{said}");
    set_mode(0o600);
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;

    let (old, before) = (shown_to_clients(&cluster), cluster.log(0).len());
    let (certificate, private) = cluster.pki().sign("api", &[&host], false);
    set_mode(0o644);
    // In place, so that the mode stays.
    fs::write(&key, private).unwrap();
    fs::write(cluster.pki().path("api.crt"), &certificate).unwrap();
    cluster.hang_up(0);
    wait_for_words(&cluster, before, &["the old ones stay in use, why=", &words]).await;
    assert_eq!(shown_to_clients(&cluster), old, "the old pair stays");
    cluster.client(0).put("still", "here").await.unwrap();
    set_mode(0o600);
    cluster.hang_up(0);
    wait_for_words(&cluster, before, &["Certificates are in use"]).await;
    let new = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    assert_eq!(shown_to_clients(&cluster), new.to_vec());
}

/// The certificate that the first node shows on the client port.
fn shown_to_clients(cluster: &Cluster) -> Vec<u8> {
    let pki = cluster.pki();
    let read = |file: &str| fs::read_to_string(pki.path(file)).unwrap();
    let caller = Caller { pair: Some((read("client.crt"), read("client.key"))), trusts: pki.authority_pem() };
    let mut stream = caller.connect((cluster.nodes[0].address, CLIENT_PORT));
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream.conn.peer_certificates().expect("a server shows one")[0].to_vec()
}

/// Clients that write all the time: one that keeps its connection, one that connects for each write. Neither tries again.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for index in 0..cluster.nodes.len() {
            for fresh in [false, true] {
                let (stop, written) = (stop.clone(), written.clone());
                let endpoint = cluster.endpoint(index);
                let certificates = cluster.pki().path("");
                let mut client = cluster.client(index);
                tasks.push(tokio::spawn(async move {
                    let mut failures = Vec::new();
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        if fresh {
                            client = Client::secure(&endpoint, of_today(&certificates), Duration::from_secs(10));
                        }
                        let put = client.put(&format!("load-{index}-{fresh}"), &round.to_string()).await;
                        if put.is_err() {
                            failures.push(format!("{endpoint} fresh={fresh}: {}", outcome(&put)));
                        }
                        written.fetch_add(1, Ordering::Relaxed);
                        round += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    failures
                }));
            }
        }
        Load { stop, written, tasks }
    }

    async fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for task in self.tasks {
            failures.extend(task.await.unwrap());
        }
        (self.written.load(Ordering::Relaxed), failures)
    }
}

/// A client that trusts whatever was ever distributed to clients, and shows the certificate of the moment.
fn of_today(folder: &std::path::Path) -> tonic::transport::ClientTlsConfig {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};
    let read = |file: &str| fs::read(folder.join(file)).unwrap();
    ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.crt")))
        .identity(Identity::from_pem(read("client.crt"), read("client.key")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_the_ca_change_under_load() {
    let mut cluster = Cluster::start_with(3, secure()).await;
    let load = Load::start(&cluster);
    let hosts: Vec<(String, String)> =
        cluster.nodes.iter().map(|node| (node.name.clone(), node.address.to_string())).collect();
    let issue_all = |cluster: &Cluster| hosts.iter().for_each(|(name, host)| cluster.pki().issue(name, &[host]));

    // New certificates by the same CA.
    issue_all(&cluster);
    reloaded(&cluster, 1).await;
    // Again, and nobody tells the nodes: they look by themselves.
    issue_all(&cluster);
    in_use(&cluster, 2).await;
    // A pair that does not fit: the old one stays.
    let (certificate, _) = cluster.pki().sign("n1", &[&hosts[0].1], false);
    let right = fs::read_to_string(cluster.pki().path("n1.crt")).unwrap();
    fs::write(cluster.pki().path("n1.crt"), certificate).unwrap();
    cluster.signal(0, libc::SIGHUP);
    wait_until(|| cluster.log(0).contains("the old ones stay in use")).await;
    fs::write(cluster.pki().path("n1.crt"), right).unwrap();
    // Another CA: first both are trusted, then it signs, then the old one is forgotten.
    let new = Authority::new("new ca");
    cluster.pki().trust(&[&cluster.pki().authority_pem(), &new.pem()]);
    reloaded(&cluster, 3).await;
    drop(cluster.pki().change_authority(new));
    issue_all(&cluster);
    reloaded(&cluster, 4).await;
    cluster.pki().issue_client();
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.pki().trust(&[&cluster.pki().authority_pem()]);
    reloaded(&cluster, 5).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (written, failures) = load.finish().await;
    figure(format_args!("certificates and CA changed under load: {written} writes, {} failed", failures.len()));
    assert!(failures.is_empty(), "{failures:#?}");
    wait_for_all_alive(&cluster).await;
    for index in 0..3 {
        assert!(!cluster.log(index).contains("Member is suspect"), "gossip took somebody for dead meanwhile");
    }
    // Connections that are made from here on know the new CA alone.
    cluster.kill(2);
    cluster.spawn(2);
    cluster.wait_until_serving(2).await;
    cluster.client(2).put("after", "all").await.unwrap();
    wait_for_all_alive(&cluster).await;
}

/// By signal.
async fn reloaded(cluster: &Cluster, times: usize) {
    (0..3).for_each(|index| cluster.signal(index, libc::SIGHUP));
    in_use(cluster, times).await;
}

/// All nodes by their own count.
async fn in_use(cluster: &Cluster, times: usize) {
    wait_until(|| (0..3).all(|index| cluster.log(index).matches("Certificates are in use").count() > times)).await;
}

async fn wait_until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it does not come to hold");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const HALF_OPEN: usize = 10_000;
/// The goal. What the machine's other work costs is told apart by trying again.
const SLOWER_AT_MOST: f64 = 2.0;
const TRIES: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_leave_the_others_alone() {
    let cluster = Cluster::start_with(3, secure()).await;
    let client = cluster.client(0);
    let address = cluster.nodes[0].address;
    for port in [CLIENT_PORT, PEER_PORT, GOSSIP_PORT] {
        let mut tries = Vec::new();
        while !left_alone(&tries) && tries.len() < TRIES {
            let before = p99(&client).await;
            let knock = move |number: usize| {
                // No more than the bound from one address.
                let last = 100 + (number % 4) as u8;
                connect_from(
                    std::net::Ipv4Addr::new(127, address.octets()[1], address.octets()[2], last),
                    (address, port),
                )
            };
            let held =
                tokio::task::spawn_blocking(move || (0..HALF_OPEN).map(knock).collect::<Vec<_>>()).await.unwrap();
            let during = p99(&client).await;
            let open = held.iter().filter(|stream| stream.is_some()).count();
            assert!(open > HALF_OPEN * 9 / 10, "{open} were opened");
            tries.push((before, during));
            figure(format_args!(
                "{open} half-open connections on port {port}: p99 of puts {:.2} ms before, {:.2} ms with them ({:.2}×)",
                before * 1e3,
                during * 1e3,
                during / before
            ));
        }
        assert!(left_alone(&tries), "port {port}: p99 in seconds before, and with them: {tries:?}");
        // New members and clients find a place all the same.
        let fresh = Client::secure(&cluster.endpoint(0), of_today(&cluster.pki().path("")), Duration::from_secs(10));
        fresh.put("place", "found").await.unwrap();
    }
}

async fn p99(client: &Client) -> f64 {
    let mut took = Vec::new();
    for number in 0..1_000 {
        let begun = Instant::now();
        client.put("measured", &number.to_string()).await.unwrap();
        took.push(begun.elapsed().as_secs_f64());
    }
    p99_of(took)
}

fn p99_of(mut took: Vec<f64>) -> f64 {
    took.sort_by(f64::total_cmp);
    took[took.len() * 99 / 100]
}

/// Whether others were slower by no more than the goal in any of the tries, each a p99 before and one with the connections open.
fn left_alone(tries: &[(f64, f64)]) -> bool {
    tries.iter().any(|(before, during)| during / before <= SLOWER_AT_MOST)
}

/// The judge has teeth: puts that are slow in each try do not pass, be it all of them or one in fifty.
#[test]
fn connections_that_hold_others_up_are_seen() {
    const CALM: f64 = 1e-3;
    let with = |slow: usize, took: f64| p99_of([vec![took; slow], vec![CALM; 1_000 - slow]].concat());
    for slow in [1_000, 20] {
        let tries = [(CALM, with(slow, 2.1 * CALM)); TRIES];
        assert!(!left_alone(&tries), "{slow} slow puts of 1,000 went unnoticed");
        assert!(left_alone(&[(CALM, with(slow, 1.9 * CALM))]), "that is within the goal");
    }
    let other_work = [(CALM, 9.0 * CALM), (CALM, CALM)];
    assert!(left_alone(&other_work) && !left_alone(&other_work[..1]), "one good try is enough");
    assert!(!left_alone(&[]) && !left_alone(&[(0.0, 0.0)]), "nothing was measured");
}

/// A connection from an address of our choice.
fn connect_from(source: std::net::Ipv4Addr, to: (std::net::Ipv4Addr, u16)) -> Option<TcpStream> {
    let sockaddr = |address: std::net::Ipv4Addr, port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the descriptor is made here and given to a TcpStream, which closes it; the addresses outlive the calls.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return None;
        }
        let stream = <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(socket);
        let (from, to) = (sockaddr(source, 0), sockaddr(to.0, to.1));
        let bound = libc::bind(socket, (&raw const from).cast(), size);
        (bound == 0 && libc::connect(socket, (&raw const to).cast(), size) == 0).then_some(stream)
    }
}
