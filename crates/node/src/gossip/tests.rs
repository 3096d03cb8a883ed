//! Doors and links on loopback, with certificates made on the spot.

use std::time::Instant;

use base::{NodeId, PeerId};
use gossip::{About, Role};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::door::Door;
use super::link::{Failure, Links, look};
use super::*;
use crate::refused::Why;
use crate::tls::tests::Authority;
use crate::transport::Me;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node's side of the port.
struct Side {
    common: Arc<Common>,
    inbox: mpsc::Receiver<Arrival>,
    sender: mpsc::Sender<Arrival>,
}

impl Side {
    /// Listens at an address of its own.
    async fn new(node: u64, cluster: u64, certificates: Option<Arc<Certificates>>) -> Side {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let about = About {
            cluster: ClusterId(cluster),
            node: NodeId(node),
            role: Role::Follower,
            raft_address: "127.0.0.1:2380".to_owned(),
            ..About::default()
        };
        let me = Identity::new(&address, PeerId(node), 1, about).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let transport = Transport::new(
            Me::default(),
            crate::transport::Peers::OnePerNode,
            Arc::default(),
            Arc::default(),
            Arc::default(),
            runtime,
            certificates.clone(),
        );
        let common = Arc::new(Common {
            me: ArcSwap::from_pointee(me),
            certificates,
            transport,
            dropped: AtomicU64::new(0),
            refused: Refused::default(),
        });
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        tokio::spawn(Door::new(common.clone(), sender.clone()).accept(listener));
        Side { common, inbox, sender }
    }

    fn address(&self) -> Arc<str> {
        self.common.me().address.clone()
    }

    /// A message of this side's, as the machine would send it.
    fn message(&self, to: &Side) -> Bytes {
        let now = base::Time::from_millis(1);
        let mut machine = gossip::Gossip::new((*self.common.me()).clone(), gossip::Settings::default(), 1, now);
        // Whatever cluster the other is of: it is the other's to refuse.
        let met = Identity { about: Arc::default(), ..(*to.common.me()).clone() };
        let outputs = machine.turn(now, vec![gossip::Input::Met(met)]);
        let message = outputs.into_iter().find_map(|output| match output {
            gossip::Output::Send { bytes, .. } => Some(bytes),
            gossip::Output::Event(_) => None,
        });
        message.expect("an announcement")
    }

    async fn receive(&mut self) -> Option<Arrival> {
        tokio::time::timeout(Duration::from_millis(500), self.inbox.recv()).await.ok().flatten()
    }

    async fn looks_at(&self, other: &Side) -> Result<Identity, String> {
        look(&self.common, &other.address()).await.map_err(words)
    }

    /// Whether a message of this side's reaches the other.
    async fn reaches(&self, other: &mut Side) -> bool {
        let mut links = Links::new(self.common.clone(), self.sender.clone());
        links.send(other.address(), self.message(other));
        let arrived = matches!(other.receive().await, Some(Arrival::Message(_)));
        links.finish(Duration::from_millis(100)).await;
        arrived
    }
}

fn words(failure: Failure) -> String {
    match failure {
        Failure::Refused => "refused".to_owned(),
        Failure::Other(why) => why,
    }
}

fn certificates(authority: &Authority, names: &[&str], expired: bool) -> Option<Arc<Certificates>> {
    let folder = TempDir::new().unwrap();
    Some(Certificates::load(authority.write(folder.path(), names, expired)).unwrap())
}

#[test]
fn addresses_are_derived() {
    let listen = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(advertised(listen("127.0.0.2:2381"), "http://127.0.0.9:2380"), "127.0.0.2:2381");
    assert_eq!(advertised(listen("0.0.0.0:2381"), "https://node-2.example:2380"), "node-2.example:2381");
    assert_eq!(advertised(listen("[::]:2381"), "https://[fd00::2]:2380"), "[fd00::2]:2381");
    assert_eq!(expected_at("http://127.0.0.1:2380").as_deref(), Some("127.0.0.1:2381"));
    assert_eq!(expected_at("[fd00::2]:4000").as_deref(), Some("[fd00::2]:4001"));
    assert_eq!(expected_at("host:65535"), None);
    assert_eq!(expected_at("host"), None);
}

#[tokio::test]
async fn messages_arrive_in_the_clear_and_under_tls() {
    let ca = Authority::new("ca");
    for secure in [false, true] {
        let of = |node: &str| secure.then(|| certificates(&ca, &[node], false)).flatten();
        let one = Side::new(1, 5, of("chainfire-node-1")).await;
        let mut two = Side::new(2, 5, of("chainfire-node-2")).await;
        assert_eq!(one.looks_at(&two).await.unwrap(), *two.common.me());
        assert!(one.reaches(&mut two).await, "secure: {secure}");
    }
}

#[tokio::test]
async fn whoever_does_not_show_who_it_is_is_refused() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let mut two = Side::new(2, 5, certificates(&ca, &["chainfire-node-2"], false)).await;
    let strangers = [
        ("no certificate", None, "does not speak this protocol"),
        ("another CA", certificates(&other, &["chainfire-node-1"], false), "certificate verify failed"),
        ("expired", certificates(&ca, &["chainfire-node-1"], true), ""),
        ("another node's", certificates(&ca, &["chainfire-node-3"], false), ""),
    ];
    for (what, certificates, why) in strangers {
        let plain = certificates.is_none();
        let stranger = Side::new(1, 5, certificates).await;
        assert!(!stranger.reaches(&mut two).await, "{what}");
        if !why.is_empty() {
            let looked = stranger.looks_at(&two).await.unwrap_err();
            assert!(looked.contains(why) || plain, "{what}: {looked}");
        }
        // Nor does this node take a stranger for the member that it claims to be.
        let looked = two.looks_at(&stranger).await.unwrap_err();
        let said = looked.contains("certificate verify failed") || looked.contains("does not speak TLS");
        assert!(said, "{what}: {looked}");
    }
    let one = Side::new(1, 5, certificates(&ca, &["chainfire-node-1"], false)).await;
    assert!(one.reaches(&mut two).await);
}

#[tokio::test]
async fn another_cluster_is_refused_on_the_connection() {
    let mut ours = Side::new(1, 5, None).await;
    let theirs = Side::new(2, 6, None).await;
    assert!(theirs.looks_at(&ours).await.unwrap_err().contains("another cluster"));
    assert!(!theirs.reaches(&mut ours).await);
    let mut nobodys = Side::new(3, 0, None).await;
    assert!(nobodys.reaches(&mut ours).await);
    assert!(ours.reaches(&mut nobodys).await);
}

/// Says hello as node 1, and then something.
async fn converse(two: &Side, nonce: Option<wire::Nonce>, message: &[u8]) -> (wire::Greeting, Vec<u8>, TcpStream) {
    let mut stream = TcpStream::connect(&*two.address()).await.unwrap();
    let greeting = wire::Greeting::decode(&wire::read(&mut stream, wire::SMALL_BYTES_MAX).await.unwrap()).unwrap();
    let me = Identity::new("127.0.0.1:1", PeerId(1), 1, About { node: NodeId(1), ..About::default() }).unwrap();
    let hello = wire::Hello { nonce: nonce.unwrap_or(greeting.nonce), identity: me };
    wire::write(&mut stream, &hello.encode()).await.unwrap();
    let verdict = wire::read(&mut stream, wire::SMALL_BYTES_MAX).await.map(|bytes| bytes.to_vec()).unwrap_or_default();
    // The other side may have hung up.
    let _ = wire::write(&mut stream, message).await;
    (greeting, verdict, stream)
}

#[tokio::test]
async fn a_recorded_connection_and_borrowed_names_are_refused() {
    let mut two = Side::new(2, 5, None).await;
    let three = Side::new(3, 5, None).await;
    let (recorded, verdict, _) = converse(&two, None, &[]).await;
    assert_eq!(verdict, [wire::WELCOME]);
    let (_, verdict, _) = converse(&two, Some(recorded.nonce), &[]).await;
    assert!(verdict.is_empty(), "a greeting that was recorded: {verdict:?}");
    assert_eq!(two.common.refused.stats().of(Why::Malformed), 1);
    let (_, verdict, mut stream) = converse(&two, None, &three.message(&two)).await;
    assert_eq!(verdict, [wire::WELCOME]);
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "closed");
    assert!(two.receive().await.is_none(), "a message of somebody else");
}

#[tokio::test]
async fn those_who_only_occupy_places_keep_nobody_out() {
    let mut two = Side::new(2, 5, None).await;
    let mut idle = Vec::new();
    for number in 0..400 {
        let mut stream = TcpStream::connect(&*two.address()).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"x").await.unwrap();
        }
        idle.push(stream);
    }
    let one = Side::new(1, 5, None).await;
    assert!(one.reaches(&mut two).await);
    // In the end all of them are shut out.
    let deadline = Instant::now() + PATIENCE;
    let mut rest = Vec::new();
    for stream in &mut idle {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(tokio::time::timeout(left, stream.read_to_end(&mut rest)).await.is_ok(), "still open");
    }
    let refused = Why::ALL.map(|why| two.common.refused.stats().of(why));
    assert!(refused[0] > 0 && refused[0] + refused[1] == 400 && refused[2..] == [0, 0], "{refused:?}");
}

#[tokio::test]
async fn a_process_that_dies_is_told_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Arc<str> = listener.local_addr().unwrap().to_string().into();
    let mut one = Side::new(1, 5, None).await;
    let two = Side::new(2, 5, None).await;
    let mut links = Links::new(one.common.clone(), one.sender.clone());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let greeting = wire::Greeting { nonce: [1; 16], identity: (*two.common.me()).clone() };
        wire::write(&mut stream, &greeting.encode()).await.unwrap();
        wire::read(&mut stream, wire::SMALL_BYTES_MAX).await.unwrap();
        wire::write(&mut stream, &[wire::WELCOME]).await.unwrap();
        wire::read(&mut stream, wire::SMALL_BYTES_MAX).await.unwrap();
        // Past the time in which a link would suspect somebody in its place.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    });
    links.send(address.clone(), Bytes::from_static(b"a message"));
    serving.await.unwrap();
    let died = Instant::now();
    match tokio::time::timeout(PATIENCE, one.inbox.recv()).await {
        Ok(Some(Arrival::Refused(refused))) => assert_eq!(refused, address),
        _ => panic!("nobody listens there any more"),
    }
    assert!(died.elapsed() < Duration::from_secs(5), "{:?}", died.elapsed());
}
