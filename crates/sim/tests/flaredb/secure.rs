//! Certificates on every port of stores and of the placement driver: who is let in, who is refused and in which words, and how
//! certificates are changed. (The machinery is Chainfire's, and has more tests there: `processes/secure.rs`.)

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{ClusterId, NodeId, PeerId};
use node::transport::frame::{self, Hello, Purpose};
use proto::flaredb as pb;
use rpc::client::{RawClient, Tls};

use crate::cluster::{CLIENT_PORT, Cluster, PATIENCE, Process, RAFT_PORT, get, put};
use crate::pki::{Authority, Caller};
use crate::splits::{covering, make_regions_small};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_under_tls() {
    let mut cluster = Cluster::start_secure(1, 3).await;
    make_regions_small(&cluster);
    const KEYS: usize = 4000;
    let key = |number: usize| format!("key-{number:06}");
    for first in (0..KEYS).step_by(100) {
        let mutation = |number: usize| pb::Mutation { key: key(number).into(), value: Some(vec![b'v'; 1024].into()) };
        let mutations = (first..first + 100).map(mutation).collect();
        let request = pb::BatchRequest { context: None, mutations };
        let asked = Instant::now();
        // A batch over a cut is to be asked again.
        while let Err(why) = cluster.raw(first / 100 % 3).await.batch(request.clone()).await {
            assert!(asked.elapsed() < PATIENCE, "{why:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    cluster
        .until("the regions are cut, and replicated", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            covering(&page).is_ok_and(|count| count >= 3) && cluster.has_replicas(3).await
        })
        .await;
    for number in (0..KEYS).step_by(371) {
        let read = get(&mut cluster.raw(number % 3).await, &key(number)).await.unwrap();
        assert_eq!(read.map(|value| value.len()), Some(1024), "{number}");
    }
    // A placement driver passes requests on to the store that has the key; all of them speak TLS.
    for process in cluster.pd.iter().chain(&cluster.stores) {
        assert_eq!(cluster.client(process, &["put", "asked", &process.name]), (true, "OK\n".to_owned()));
        assert_eq!(cluster.client(process, &["get", "asked"]), (true, format!("{}\n", process.name)));
    }
    let said = cluster.until_well(0).await;
    assert_eq!(said.matches("https://").count(), 4, "{said}");
    // The placement driver's pages: read, and changed by both methods.
    let (shown, said) = cluster.client(&cluster.pd[0], &["stores"]);
    assert!(shown && said.lines().count() == 3, "{said}");
    let (changed, said) = cluster.client(&cluster.pd[0], &["policy", "set", "max-replicas=3"]);
    assert!(changed && said.contains("max-replicas 3"), "{said}");
    let (cleared, said) = cluster.client(&cluster.pd[0], &["stores", "limit", "1", "--clear"]);
    assert!(cleared && said.contains("the policy's"), "{said}");
    for (process, program) in [(&cluster.pd[0], "placement"), (&cluster.stores[0], "flaredb")] {
        let page = rpc::client::page(&process.url(), "/metrics", cluster.tls().as_ref()).await.unwrap();
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains(&format!("{program}_tls_expiry_timestamp_seconds{{file=\"cert\"}} ")), "{page}");
        assert!(process.said().contains("Certificates are in use"), "{}", process.name);
    }
    // One that comes back, comes back under TLS.
    cluster.stores[1].kill();
    // The others may have to elect a leader first.
    let asked = Instant::now();
    while let Err(why) = put(&mut cluster.raw(0).await, "while-away", "yes").await {
        assert!(asked.elapsed() < PATIENCE, "{why:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.stores[1].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    assert_eq!(get(&mut cluster.raw(1).await, "while-away").await.unwrap().as_deref(), Some("yes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_no_tls_is_told_so() {
    let mut cluster = Cluster::start_secure(1, 1).await;
    for process in [&cluster.pd[0], &cluster.stores[0]] {
        let mut stream = TcpStream::connect((process.address, CLIENT_PORT)).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("use https://"), "{answer}");
        let plain = process.url().replace("https", "http");
        let (done, said) = cluster.client_at(&plain, &["get", "x"]);
        assert!(!done && said.contains(": this port speaks TLS: use https:// ("), "{said}");
    }
    // A store whose placement driver speaks TLS, and the other way round: either both do, or neither.
    let pd = format!("--pd-addr=http://{}:{CLIENT_PORT}", cluster.pd[0].address);
    let added = cluster.add_store(2);
    let plain = cluster.stores[added].flag(&pd);
    plain.spawn();
    let mismatch = "failed to register with PD, retrying";
    said(
        plain,
        0,
        &[mismatch, "this port speaks TLS: use https://", "TLS mismatch: either PD and stores both use TLS"],
    )
    .await;

    let mut open = Cluster::new(1, 1);
    open.pd[0].spawn();
    let pd = format!("--pd-addr=https://{}:{CLIENT_PORT}", open.pd[0].address);
    let added = cluster.add_store(3);
    let secure = cluster.stores[added].flag(&pd);
    secure.spawn();
    said(secure, 0, &[mismatch, "TLS mismatch: either PD and stores both use TLS"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_on_each_port() {
    let cluster = Cluster::start_secure(1, 2).await;
    let pki = cluster.pki();
    let http = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let other = Authority::new("other");
    let known = cluster.stores[1].address.to_string();
    let revoked = pki.sign_revoked("left", &[&known]);
    for process in [&cluster.pd[0], &cluster.stores[0]] {
        let before = process.said().len();
        process.signal(libc::SIGHUP);
        said(process, before, &["Certificates are in use"]).await;
    }
    let caller = |pair| Caller { pair, trusts: pki.authority_pem() };
    // A store's number, of which a store's certificate speaks, and a placement driver's another one.
    let hello = |node: u64, address: &str| {
        let me = Hello {
            purpose: Purpose::Call,
            cluster: ClusterId(0),
            node: NodeId(node),
            peer: PeerId(7),
            address: format!("https://{address}:{RAFT_PORT}"),
        };
        let mut bytes = Vec::new();
        frame::put(&mut bytes, &me.encode());
        bytes
    };
    let good = || Some(pki.sign("good", &["flaredb-node-2", &known], false));
    let strangers = [
        ("without a certificate", None, "showed no certificate"),
        ("by another CA", Some(other.sign("other", &["flaredb-node-2", &known], false)), "unknown CA"),
        ("expired", Some(pki.sign("old", &["flaredb-node-2", &known], true)), "expired on"),
        ("revoked", Some(revoked), "revoked"),
    ];
    for process in [&cluster.pd[0], &cluster.stores[0]] {
        let answer = caller(good()).call((process.address, CLIENT_PORT), http);
        assert!(
            answer.unwrap().starts_with(b"HTTP/1.1 200"),
            "whom it lets in shows that the others are refused for what they are"
        );
        for (what, pair, words) in &strangers {
            for port in [CLIENT_PORT, RAFT_PORT] {
                let before = process.said().len();
                let bytes = if port == CLIENT_PORT { http.to_vec() } else { hello(2, &known) };
                let answer = caller(pair.clone()).call((process.address, port), &bytes);
                assert!(answer.is_err(), "{what} on {port} of {}", process.name);
                said(process, before, &["certificate verify failed", *words]).await;
            }
        }
    }
    let welcomed = |answer: &[u8]| {
        let welcome = frame::Welcome::decode(&frame::read(&mut &*answer, frame::SMALL_BYTES_MAX).unwrap()).unwrap();
        welcome.refusal().is_none()
    };
    let (pd, store) = (&cluster.pd[0], &cluster.stores[0]);
    let answer = caller(good()).call((store.address, RAFT_PORT), &hello(2, &known)).unwrap();
    assert!(welcomed(&answer), "a store speaks with a store");
    // Good certificates, but not for what they are shown.
    let wrong: [(&str, &Process, &[&str], &str); 4] = [
        ("another store's", store, &["flaredb-node-1"], "it names neither flaredb-node-2 nor"),
        ("of Chainfire", store, &["chainfire-node-2", &known], "chainfire-node-… is another program"),
        ("of the placement driver", store, &["placement-driver-node-2", &known], "is another program"),
        ("a store's, for the placement driver", pd, &["flaredb-node-2", &known], "flaredb-node-… is another program"),
    ];
    for (what, process, names, words) in wrong {
        let before = process.said().len();
        let pair = Some(pki.sign("wrong", names, false));
        let answer = caller(pair).call((process.address, RAFT_PORT), &hello(2, &known)).unwrap();
        assert!(!welcomed(&answer), "{what}");
        said(process, before, &["certificate verify failed", words]).await;
    }
    let client = fs::read_to_string(pki.path("client.crt")).unwrap();
    let client = Some((client, fs::read_to_string(pki.path("client.key")).unwrap()));
    let before = store.said().len();
    let answer = caller(client).call((store.address, RAFT_PORT), &hello(2, &known)).unwrap();
    assert!(!welcomed(&answer), "a client's certificate opens the client port alone");
    said(store, before, &["it is not made for members"]).await;
    put(&mut cluster.raw(1).await, "still", "here").await.unwrap();
}

/// As any client does: the name that members go by is not enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_checks_the_host_of_its_placement_driver() {
    let mut cluster = Cluster::secure(1, 1);
    cluster.pki().issue("pd1", &["placement-driver-node-1", "127.9.9.9"]);
    cluster.pd[0].spawn();
    cluster.stores[0].spawn();
    let refused = format!("certificate verify failed: not valid for {}", cluster.pd[0].address);
    said(&cluster.stores[0], 0, &["failed to register with PD, retrying", &refused]).await;
    cluster.certify(&cluster.pd[0]);
    cluster.pd[0].signal(libc::SIGHUP);
    said(&cluster.stores[0], 0, &["Registered with PD, store_id=1"]).await;
    cluster.until("the first region is there", async |cluster| cluster.has_replicas(1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_unsafe_or_wrong_files_does_not_start() {
    let cluster = Cluster::secure(1, 1);
    type Spoil<'a> = &'a dyn Fn(&Process);
    let key = |process: &Process| cluster.pki().path(&format!("{}.key", process.name));
    let cases: [(Spoil<'_>, &[&str]); 4] = [
        (
            &|process| fs::set_permissions(key(process), fs::Permissions::from_mode(0o644)).unwrap(),
            &["may be read by others (mode 0644)", "chmod 600"],
        ),
        (
            &|process| cluster.pki().issue(&process.name, &["127.9.9.9"]),
            &["names neither", "-node-1 nor", "generate-dev-certs.sh"],
        ),
        (
            &|process| {
                let (certificate, key) = Authority::new("other").sign("n1", &[&process.address.to_string()], false);
                cluster.pki().put(&process.name, &certificate, &key);
            },
            &["certificate verify failed", "same CA"],
        ),
        (&|_| fs::remove_file(cluster.pki().path("ca.crt")).unwrap(), &["cannot read", "ca.crt"]),
    ];
    for process in [&cluster.pd[0], &cluster.stores[0]] {
        for (spoil, words) in &cases {
            cluster.pki().trust(&[&cluster.pki().authority_pem()]);
            cluster.certify(process);
            spoil(process);
            refuses(process, &[], words, "code=CF7012");
            refuses(process, &["--check-config"], words, "code=CF7012");
        }
        cluster.pki().trust(&[&cluster.pki().authority_pem()]);
        cluster.certify(process);
        assert!(process.command(&["--check-config"]).output().unwrap().status.success());
        assert!(!cluster.data_dir(process).exists(), "what was refused, or only checked, has made nothing");
    }
}

/// Peers off loopback need certificates, clients need them or a word that says otherwise, which is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_in_the_clear_off_loopback_unless_it_is_said() {
    let cluster = Cluster::new(1, 1);
    for process in [&cluster.pd[0], &cluster.stores[0]] {
        let open_api = ["--api-addr=10.255.255.1:2379"];
        refuses(
            process,
            &open_api,
            &["clients are served without TLS there", "[tls]", "network.insecure = true"],
            "CF7010",
        );
        let open_raft = ["--raft-addr=10.255.255.1:2380", "--initial-members="];
        let open_raft = &open_raft[..if process.name.starts_with("pd") { 2 } else { 1 }];
        refuses(process, open_raft, &["speak to each other under TLS only", "[tls]"], "CF7010");
        refuses(process, &[open_raft, &["--insecure"]].concat(), &["under TLS only"], "CF7010");
        let checked =
            process.command(&["--api-addr=10.255.255.1:2379", "--insecure", "--check-config"]).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(
            checked.status.success() && said.contains("10.255.255.1:2379 without TLS: whoever reaches it"),
            "{said}"
        );
    }
}

fn refuses(process: &Process, flags: &[&str], words: &[&str], code: &str) {
    let output = process.command(flags).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(words.iter().all(|words| said.contains(words)) && said.lines().count() == 1, "{}: {said}", process.name);
    assert!(said.trim_end().ends_with(code), "{said}");
}

/// Waits until all of these are in what a process has said since.
async fn said(process: &Process, before: usize, words: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    while !words.iter().all(|words| process.said()[before..].contains(words)) {
        assert!(Instant::now() < deadline, "{} says nothing of {words:?}: {}", process.name, &process.said()[before..]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Clients that write all the time: one that keeps its connection, one that connects for each write, at each store. None
/// of them tries again.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for store in &cluster.stores {
            for fresh in [false, true] {
                let (stop, written, url) = (stop.clone(), written.clone(), store.url());
                let files = cluster.pki().client_files();
                tasks.push(tokio::spawn(async move {
                    let (mut failures, mut kept) = (Vec::new(), None);
                    while !stop.load(Ordering::Relaxed) {
                        let outcome = async {
                            let channel = match kept.take() {
                                Some(channel) => channel,
                                None => {
                                    let tls = Tls::load(&files)?;
                                    let connected =
                                        rpc::client::connect(&url, Duration::from_secs(10), Some(&tls)).await;
                                    connected.map_err(|why| why.to_string())?
                                }
                            };
                            let written = put(&mut RawClient::new(channel.clone()), &format!("load-{url}"), "v").await;
                            kept = (!fresh).then_some(channel);
                            written.map_err(|why| why.to_string())
                        };
                        if let Err(why) = outcome.await {
                            failures.push(format!("{url} fresh={fresh}: {why}"));
                        }
                        written.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(10)).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_the_ca_change_under_load() {
    let mut cluster = Cluster::start_secure(1, 3).await;
    let load = Load::start(&cluster);
    // New certificates by the same CA.
    certify_all(&cluster);
    reloaded(&cluster, 1).await;
    // A pair that does not fit: the old one stays.
    let right = fs::read_to_string(cluster.pki().path("store1.crt")).unwrap();
    let (wrong, _) = cluster.pki().sign("store1", &["flaredb-node-1"], false);
    fs::write(cluster.pki().path("store1.crt"), wrong).unwrap();
    cluster.stores[0].signal(libc::SIGHUP);
    said(&cluster.stores[0], 0, &["the old ones stay in use"]).await;
    fs::write(cluster.pki().path("store1.crt"), right).unwrap();
    // Another CA: first both are trusted, then it signs, then the old one is forgotten.
    let new = Authority::new("new ca");
    cluster.pki().trust(&[&cluster.pki().authority_pem(), &new.pem()]);
    reloaded(&cluster, 2).await;
    drop(cluster.pki().change_authority(new));
    certify_all(&cluster);
    reloaded(&cluster, 3).await;
    cluster.pki().issue_client();
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.pki().trust(&[&cluster.pki().authority_pem()]);
    reloaded(&cluster, 4).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (written, failures) = load.finish().await;
    println!("figure: certificates and CA changed under load: {written} writes, {} failed", failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(written > 100, "{written}");
    // Whoever connects from here on knows the new CA alone: stores to each other, and to the placement driver.
    cluster.stores[2].kill();
    cluster.stores[2].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    let before = cluster.stores[0].said().len();
    cluster.pd[0].kill();
    said(&cluster.stores[0], before, &["Heartbeat to PD failed, retrying"]).await;
    cluster.pd[0].spawn();
    said(&cluster.stores[0], before, &["Heartbeat to PD succeeded again"]).await;
    put(&mut cluster.raw(2).await, "after", "all").await.unwrap();
}

fn certify_all(cluster: &Cluster) {
    cluster.pd.iter().chain(&cluster.stores).for_each(|process| cluster.certify(process));
}

/// By signal, and all servers by their own count.
async fn reloaded(cluster: &Cluster, times: usize) {
    let all = || cluster.pd.iter().chain(&cluster.stores);
    all().for_each(|process| process.signal(libc::SIGHUP));
    let deadline = Instant::now() + PATIENCE;
    while !all().all(|process| process.said().matches("Certificates are in use").count() > times) {
        assert!(Instant::now() < deadline, "certificates are not taken into use");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
