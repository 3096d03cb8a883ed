//! Clusters of processes: started by etcd's flags, each node with a loopback address, a folder and a log file of its
//! own; killed, paused, stopped and started again by process id.
//!
//! A cluster that is dropped kills its processes and removes its folder. When a test fails, the ends of the logs are
//! shown and the folder stays. Whoever kills the test program kills the nodes with it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use rpc::client::Tls;
use tempfile::TempDir;

use crate::client::{self, Client};
use crate::machine::Network;
pub use crate::machine::command;
use crate::pki::Pki;

pub const CLIENT_PORT: u16 = 2379;
pub const PEER_PORT: u16 = 2380;
pub const GOSSIP_PORT: u16 = 2381;
/// Nothing that a healthy cluster does takes so long, on however busy a machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Set to the path of an etcd, it is tested instead.
const PROGRAM_VARIABLE: &str = "PROCESSES_PROGRAM";
const LOG_LINES_SHOWN: usize = 60;

/// What the nodes of a cluster have in common.
#[derive(Clone, Debug)]
pub struct Options {
    pub heartbeat_ms: u32,
    pub election_ms: u32,
    /// Further flags, without dashes.
    pub flags: Vec<(&'static str, String)>,
    /// Every port is TLS, with certificates by this CA.
    pub tls: bool,
    /// Where the data lies; the cluster's own folder by default.
    pub data_root: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options { heartbeat_ms: 100, election_ms: 1000, flags: Vec::new(), tls: false, data_root: None }
    }
}

impl Options {
    /// Fails over sooner, so that a test sees more elections.
    pub fn brisk() -> Options {
        Options { heartbeat_ms: 50, election_ms: 500, ..Options::default() }
    }

    pub fn flag(mut self, name: &'static str, value: impl ToString) -> Options {
        self.flags.push((name, value.to_string()));
        self
    }
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    options: Options,
    folder: Option<TempDir>,
    network: Network,
    pki: Option<Pki>,
}

/// One node; its flags stay the same over restarts unless a test changes them.
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    pub data_dir: PathBuf,
    pub initial_cluster: String,
    pub initial_state: &'static str,
    pub log: PathBuf,
    /// Under etcd's name.
    pub program: PathBuf,
    /// Beside what every program is given.
    pub environment: Vec<(&'static str, OsString)>,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `count` empty nodes and waits until each serves.
    pub async fn start(count: usize) -> Cluster {
        Cluster::start_with(count, Options::default()).await
    }

    pub async fn start_with(count: usize, options: Options) -> Cluster {
        let mut cluster = Cluster::new(count, options);
        for index in 0..count {
            cluster.spawn(index);
        }
        cluster.wait_until_all_serve().await;
        cluster
    }

    /// `count` nodes, none of them started.
    pub fn new(count: usize, options: Options) -> Cluster {
        let folder = tempfile::Builder::new().prefix("processes-").tempdir().unwrap();
        std::os::unix::fs::symlink(program(), folder.path().join("etcd")).unwrap();
        let network = Network::take(CLIENT_PORT);
        let pki = options.tls.then(|| Pki::new(&folder.path().join("certs")));
        let mut cluster = Cluster { nodes: Vec::new(), options, folder: Some(folder), network, pki };
        for _ in 0..count {
            cluster.add_node("new");
        }
        let all = cluster.initial_cluster();
        cluster.nodes.iter_mut().for_each(|node| node.initial_cluster = all.clone());
        cluster
    }

    /// Another node with its own address and an empty folder, not started. All nodes so far are its initial cluster.
    pub fn add_node(&mut self, initial_state: &'static str) -> usize {
        let index = self.nodes.len();
        let name = format!("n{}", index + 1);
        let root = self.options.data_root.clone().unwrap_or_else(|| self.folder().to_owned());
        self.nodes.push(Node {
            address: self.network.address(index as u8 + 1),
            data_dir: root.join(&name),
            initial_cluster: String::new(),
            initial_state,
            log: self.folder().join(format!("{name}.log")),
            program: self.program(),
            environment: Vec::new(),
            process: None,
            name,
        });
        self.nodes[index].initial_cluster = self.initial_cluster();
        if let Some(pki) = &self.pki {
            pki.issue(&self.nodes[index].name, &[&self.nodes[index].address.to_string()]);
        }
        index
    }

    /// A flag of every node from its next start on; it takes the place of one that was there.
    pub fn set_flag(&mut self, name: &'static str, value: impl ToString) {
        self.options.flags.push((name, value.to_string()));
    }

    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("taken only when the cluster is dropped").path()
    }

    /// The program under its etcd name.
    pub fn program(&self) -> PathBuf {
        self.folder().join("etcd")
    }

    pub fn endpoint(&self, index: usize) -> String {
        format!("{}://{}:{CLIENT_PORT}", self.scheme(), self.nodes[index].address)
    }

    fn scheme(&self) -> &'static str {
        if self.options.tls { "https" } else { "http" }
    }

    pub fn endpoints(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|index| self.endpoint(index)).collect()
    }

    pub fn client(&self, index: usize) -> Client {
        self.client_within(index, client::CALL_TIMEOUT)
    }

    pub fn client_within(&self, index: usize, timeout: Duration) -> Client {
        match &self.pki {
            Some(pki) => Client::secure(&self.endpoint(index), pki.client(), timeout),
            None => Client::with_timeout(&self.endpoint(index), timeout),
        }
    }

    /// A node's page of metrics, over TLS where the cluster speaks it.
    pub async fn metrics(&self, index: usize) -> String {
        let tls = self.pki.as_ref().map(|pki| Tls::load(&pki.client_files()).unwrap());
        let page = rpc::client::page(&self.endpoint(index), "/metrics", tls.as_ref()).await.unwrap();
        String::from_utf8(page).unwrap()
    }

    /// The certificates of a cluster with TLS.
    pub fn pki(&self) -> &Pki {
        self.pki.as_ref().expect("a cluster with TLS")
    }

    pub fn peer_url(&self, index: usize) -> String {
        format!("{}://{}:{PEER_PORT}", self.scheme(), self.nodes[index].address)
    }

    /// Returns when a node has said a line with these words.
    pub async fn wait_until_said(&self, index: usize, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log(index).lines().any(|line| line.contains(words)) {
            assert!(Instant::now() < deadline, "{} does not say {words:?}", self.nodes[index].name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// All that a node has said, over all its starts.
    pub fn log(&self, index: usize) -> String {
        fs::read_to_string(&self.nodes[index].log).unwrap_or_default()
    }

    pub fn is_running(&self, index: usize) -> bool {
        self.nodes[index].process.is_some()
    }

    /// Whether a node that was started has ended by itself.
    pub fn has_ended(&mut self, index: usize) -> bool {
        let process = self.nodes[index].process.as_mut().expect("the node was started");
        process.try_wait().unwrap().is_some()
    }

    /// Starts a node that does not run.
    pub fn spawn(&mut self, index: usize) {
        let command = self.command(index);
        self.spawn_as(index, command);
    }

    /// Starts a node by another command line than its own.
    pub fn spawn_as(&mut self, index: usize, mut command: Command) {
        assert!(self.nodes[index].process.is_none(), "{} runs already", self.nodes[index].name);
        let log = File::options().create(true).append(true).open(&self.nodes[index].log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.nodes[index].process = Some(command.spawn().unwrap());
    }

    /// The command line of a node.
    pub fn command(&self, index: usize) -> Command {
        let node = &self.nodes[index];
        let mut command = command(&node.program);
        command.envs(node.environment.iter().cloned());
        let mut flags = vec![
            ("name", node.name.clone()),
            ("data-dir", node.data_dir.display().to_string()),
            ("listen-client-urls", self.endpoint(index)),
            ("advertise-client-urls", self.endpoint(index)),
            ("listen-peer-urls", self.peer_url(index)),
            ("initial-advertise-peer-urls", self.peer_url(index)),
            ("initial-cluster", node.initial_cluster.clone()),
            ("initial-cluster-state", node.initial_state.to_owned()),
            ("initial-cluster-token", "processes".to_owned()),
            ("heartbeat-interval", self.options.heartbeat_ms.to_string()),
            ("election-timeout", self.options.election_ms.to_string()),
        ];
        if let Some(pki) = &self.pki {
            flags.extend(pki.flags(&node.name));
        }
        flags.extend(self.options.flags.iter().cloned());
        command.args(flags.into_iter().map(|(name, value)| format!("--{name}={value}")));
        command
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.nodes[index].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGKILL to all, then waits for all.
    pub fn kill_all(&mut self) {
        for index in 0..self.nodes.len() {
            self.signal(index, libc::SIGKILL);
        }
        for index in 0..self.nodes.len() {
            self.kill(index);
        }
    }

    /// SIGTERM; returns when the process has ended in good order.
    pub async fn stop(&mut self, index: usize) {
        self.signal(index, libc::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let process = self.nodes[index].process.as_mut().expect("the node runs");
            if let Some(status) = process.try_wait().unwrap() {
                self.nodes[index].process = None;
                // An etcd ends by the signal after it has stopped.
                assert!(status.success() || is_etcd(), "a stopped node ends with exit code 0, not {status}");
                return;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.nodes[index].name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGTERM, and no waiting.
    pub fn terminate(&self, index: usize) {
        self.signal(index, libc::SIGTERM);
    }

    pub fn pause(&self, index: usize) {
        self.signal(index, libc::SIGSTOP);
    }

    pub fn resume(&self, index: usize) {
        self.signal(index, libc::SIGCONT);
    }

    /// SIGHUP.
    pub fn hang_up(&self, index: usize) {
        self.signal(index, libc::SIGHUP);
    }

    pub fn signal(&self, index: usize, number: i32) {
        if let Some(process) = &self.nodes[index].process {
            // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
            unsafe { libc::kill(process.id() as libc::pid_t, number) };
        }
    }

    pub async fn wait_until_all_serve(&mut self) {
        for index in 0..self.nodes.len() {
            self.wait_until_serving(index).await;
        }
    }

    /// Returns when the node has answered a linearizable read.
    pub async fn wait_until_serving(&mut self, index: usize) {
        let client = self.client_within(index, Duration::from_secs(2));
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = client.get("/").await {
            let Node { name, process, .. } = &mut self.nodes[index];
            let process = process.as_mut().expect("the node runs");
            if let Some(status) = process.try_wait().unwrap() {
                panic!("{name} ended by itself: {status}");
            }
            assert!(Instant::now() < deadline, "{name} does not serve: {why}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The index of the running node that says of itself that it leads.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.find_leader().await {
                return leader;
            }
            assert!(Instant::now() < deadline, "no node leads");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn find_leader(&self) -> Option<usize> {
        let mut found = None;
        for index in (0..self.nodes.len()).filter(|index| self.is_running(*index)) {
            let client = self.client_within(index, Duration::from_millis(300));
            let Ok(status) = client.status().await else { continue };
            let own = status.header.as_ref().map_or(0, |header| header.member_id);
            let term = status.raft_term;
            if status.leader != 0 && status.leader == own && found.is_none_or(|(_, best)| term > best) {
                found = Some((index, term));
            }
        }
        found.map(|(index, _)| index)
    }

    /// The member with a node's peer URL, as `through` sees it.
    pub async fn member(&self, through: usize, index: usize) -> Option<pb::Member> {
        let url = self.peer_url(index);
        let members = self.client(through).members().await.unwrap();
        members.into_iter().find(|member| member.peer_urls.contains(&url))
    }

    /// Asserts that all nodes hold the same history.
    pub async fn assert_equal_hashes(&self) {
        let at = client::revision(&self.client(0).get("/").await.unwrap().header);
        let mut hashes = Vec::new();
        for index in 0..self.nodes.len() {
            // The read makes sure that the node has applied what the others have.
            self.client(index).get("/").await.unwrap();
            let hashed = self.client(index).hash_kv(at).await.unwrap();
            hashes.push((hashed.hash, hashed.compact_revision));
        }
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "replicas differ at revision {at}: {hashes:x?}");
    }

    fn initial_cluster(&self) -> String {
        let members = self.nodes.iter().enumerate();
        let members: Vec<String> =
            members.map(|(index, node)| format!("{}={}", node.name, self.peer_url(index))).collect();
        members.join(",")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            // Nothing here may hide the failure that a test is about to report.
            let _ = process.kill();
            let _ = process.wait();
        }
        if !std::thread::panicking() {
            return;
        }
        for node in &self.nodes {
            let text = fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("── the end of the log of {} ({})\n{}", node.name, node.address, shown.join("\n"));
        }
        if let Some(folder) = self.folder.take() {
            eprintln!("── data and logs stay in {}", folder.keep().display());
        }
    }
}

/// Whether an etcd is tested instead of Chainfire.
pub fn is_etcd() -> bool {
    std::env::var_os(PROGRAM_VARIABLE).is_some()
}

/// The program under test: `chainfire` from the folder that this test program was built into.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os(PROGRAM_VARIABLE) {
        return path.into();
    }
    let own = std::env::current_exe().unwrap();
    let built = own.parent().and_then(Path::parent).expect("tests lie in target/release/deps").join("chainfire");
    assert!(built.is_file(), "{} is not there: run `make build` first", built.display());
    built
}
