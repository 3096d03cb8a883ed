//! A placement driver and stores, each a process with a loopback address, a folder and a log of its own. All end with the
//! test; when it fails, the ends of the logs are shown.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use proto::flaredb as pb;
use rpc::client::{RawClient, Tls};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

use crate::machine::{Network, command};
use crate::pki::Pki;

pub const CLIENT_PORT: u16 = 2379;
pub const RAFT_PORT: u16 = 2380;
/// Nothing that a healthy cluster does takes so long, on however busy a machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const LOG_LINES_SHOWN: usize = 40;
/// The first store's place in the network; those before are the placement driver's.
const STORES_FROM: u8 = 21;

pub struct Cluster {
    pub pd: Vec<Process>,
    pub stores: Vec<Process>,
    folder: TempDir,
    network: Network,
    pki: Option<Pki>,
}

pub struct Process {
    pub name: String,
    pub address: Ipv4Addr,
    secure: bool,
    program: &'static str,
    flags: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// So many members of the placement driver and so many stores, all started, and the first region on as many stores as
    /// there are, three at most.
    pub async fn start(members: usize, stores: usize) -> Cluster {
        Cluster::new(members, stores).started().await
    }

    /// As [`Cluster::start`], with certificates on every port.
    pub async fn start_secure(members: usize, stores: usize) -> Cluster {
        Cluster::secure(members, stores).started().await
    }

    pub async fn started(self) -> Cluster {
        let mut cluster = self;
        let stores = cluster.stores.len();
        cluster.pd.iter_mut().chain(&mut cluster.stores).for_each(Process::spawn);
        let replicas = stores.min(3);
        // However full the disk of this machine is: it is nobody's subject here.
        cluster.until("the placement driver takes a policy", async |cluster| cluster.has_room_on_any_disk()).await;
        cluster.until("the first region is replicated", async |cluster| cluster.has_replicas(replicas).await).await;
        cluster
    }

    pub fn new(members: usize, stores: usize) -> Cluster {
        Cluster::with(members, stores, false)
    }

    pub fn secure(members: usize, stores: usize) -> Cluster {
        Cluster::with(members, stores, true)
    }

    fn with(members: usize, stores: usize, secure: bool) -> Cluster {
        let folder = tempfile::Builder::new().prefix("flaredb-").tempdir().unwrap();
        let network = Network::take(CLIENT_PORT);
        let pki = secure.then(|| Pki::new(&folder.path().join("certs")));
        let mut cluster = Cluster { pd: Vec::new(), stores: Vec::new(), folder, network, pki };
        let places = 11..11 + members as u8;
        let initial: Vec<String> = places
            .clone()
            .map(|place| format!("{}={}:{RAFT_PORT}", place - 10, cluster.network.address(place)))
            .collect();
        for place in places {
            let mut process = cluster.process("placement-driver", &format!("pd{}", place - 10), place);
            let flags = [
                format!("--node-id={}", place - 10),
                format!("--initial-members={}", initial.join(",")),
                "--tick-interval-ms=50".to_owned(),
            ];
            process.flags.extend(flags);
            cluster.pd.push(process);
        }
        for index in 0..stores {
            cluster.add_store(index as u64 + 1);
        }
        cluster
    }

    /// Another store, not started; id zero: whatever it is called. Its place in `stores`.
    pub fn add_store(&mut self, id: u64) -> usize {
        self.add_store_that_knows(id, self.pd.len())
    }

    /// One whose configuration names so many members of the placement driver.
    pub fn add_store_that_knows(&mut self, id: u64, members: usize) -> usize {
        let index = self.stores.len();
        let mut process = self.process("flaredb", &format!("store{}", index + 1), STORES_FROM + index as u8);
        let pd: Vec<String> = self.pd[..members].iter().map(|pd| format!("{}:{CLIENT_PORT}", pd.address)).collect();
        process.flags.extend([format!("--store-id={id}"), format!("--pd-addr={}", pd.join(","))]);
        process.flags.push("--tick-interval-ms=50".to_owned());
        self.stores.push(process);
        index
    }

    pub fn pki(&self) -> &Pki {
        self.pki.as_ref().expect("a cluster with TLS")
    }

    /// A pair for a process, that names it as members do, and where it is.
    pub fn certify(&self, process: &Process) {
        let number = process.name.trim_start_matches(|c: char| !c.is_ascii_digit());
        let member = match process.program {
            "flaredb" => format!("flaredb-node-{number}"),
            _ => format!("placement-driver-node-{number}"),
        };
        self.pki().issue(&process.name, &[&member, &process.address.to_string()]);
    }

    /// For a client of today.
    pub fn tls(&self) -> Option<Tls> {
        self.pki.as_ref().map(|pki| Tls::load(&pki.client_files()).unwrap())
    }

    /// Whether the placement driver has taken it that the machine's disk may be rather full.
    pub fn has_room_on_any_disk(&self) -> bool {
        let url = format!("{}/pd/api/v1/config/schedule", self.pd[0].url());
        let policy = r#"{"low-space-ratio": 0.99}"#;
        let output = Command::new("curl").args(self.curl()).args(["-d", policy, &url]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(r#""low-space-ratio": 0.99"#)
    }

    /// What curl is given before anything else.
    pub fn curl(&self) -> Vec<String> {
        let mut words = vec!["-s".to_owned()];
        if let Some(pki) = &self.pki {
            for (flag, file) in [("--cacert", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")] {
                words.extend([flag.to_owned(), pki.path(file).display().to_string()]);
            }
        }
        words
    }

    fn process(&self, program: &'static str, name: &str, place: u8) -> Process {
        let address = self.network.address(place);
        let mut flags = vec![
            format!("--data-dir={}", self.folder.path().join(name).display()),
            format!("--api-addr={address}:{CLIENT_PORT}"),
            format!("--raft-addr={address}:{RAFT_PORT}"),
        ];
        if let Some(pki) = &self.pki {
            let path = |file: &str| pki.path(file).display().to_string();
            flags.push(format!("--tls-cert-file={}", path(&format!("{name}.crt"))));
            flags.push(format!("--tls-key-file={}", path(&format!("{name}.key"))));
            flags.push(format!("--tls-ca-file={}", path("ca.crt")));
            flags.push(format!("--tls-crl-file={}", path("ca.crl")));
        }
        let log = self.folder.path().join(format!("{name}.log"));
        let secure = self.pki.is_some();
        let process = Process { name: name.to_owned(), address, secure, program, flags, log, child: None };
        if secure {
            self.certify(&process);
        }
        process
    }

    pub fn data_dir(&self, process: &Process) -> PathBuf {
        self.folder.path().join(&process.name)
    }

    /// What a store's `/health` answers: the status, and the page.
    pub fn health(&self, store: usize) -> (u16, String) {
        let url = format!("{}/health", self.stores[store].url());
        let output = Command::new("curl").args(self.curl()).args(["-w", "\n%{http_code}", &url]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (page, status) = said.rsplit_once('\n').expect("a status is the last line");
        (status.parse().unwrap_or(0), page.to_owned())
    }

    /// Asks again and again until it holds.
    pub async fn until(&mut self, what: &str, holds: impl AsyncFnMut(&mut Cluster) -> bool) {
        self.until_within(PATIENCE, what, holds).await;
    }

    /// As [`Cluster::until`], for what takes its time.
    pub async fn until_within(
        &mut self,
        patience: Duration,
        what: &str,
        mut holds: impl AsyncFnMut(&mut Cluster) -> bool,
    ) {
        let deadline = Instant::now() + patience;
        while !holds(self).await {
            assert!(Instant::now() < deadline, "it never came: {what}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks a member of the placement driver for the cluster's verdict until it is good, and returns what it says then. A
    /// leader of a moment ago has not heard of everything yet, and says so.
    pub async fn until_well(&mut self, member: usize) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (healthy, said) = self.client(&self.pd[member], &["cluster-status"]);
            if healthy {
                return said;
            }
            assert!(Instant::now() < deadline, "{said}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// A page of the placement driver; `None`: it is not to be had now.
    pub async fn page(&self, path: &str) -> Option<Value> {
        for pd in self.pd.iter().filter(|pd| pd.child.is_some()) {
            if let Ok(page) = rpc::client::page(&pd.url(), &format!("/pd/api/v1/{path}"), self.tls().as_ref()).await
                && let Ok(value) = serde_json::from_slice::<Value>(&page)
                && value.get("error").is_none()
            {
                return Some(value);
            }
        }
        None
    }

    /// Asks the placement driver for something; whether it is done its pages tell.
    pub fn post(&self, path: &str, body: &Value) {
        let url = format!("{}/pd/api/v1/{path}", self.pd[0].url());
        let posted =
            Command::new("curl").args(self.curl()).args(["-o", "/dev/null", "-d", &body.to_string(), &url]).status();
        assert!(posted.unwrap().success(), "{path} {body}");
    }

    /// Changes what the placement driver schedules by.
    pub fn set_policy(&self, changes: &str) {
        let url = format!("{}/pd/api/v1/config/schedule", self.pd[0].url());
        let posted = Command::new("curl").args(["-sf", "-o", "/dev/null", "-X", "POST", &url, "-d", changes]).status();
        assert!(posted.unwrap().success(), "{changes}");
    }

    /// Whether every region has so many voters, all of them caught up, and a leader.
    pub async fn has_replicas(&self, count: usize) -> bool {
        let Some(page) = self.page("regions").await else { return false };
        let regions = page["regions"].as_array().cloned().unwrap_or_default();
        let whole = |region: &Value| {
            let peers = region["peers"].as_array().cloned().unwrap_or_default();
            peers.len() == count
                && peers.iter().all(|peer| peer["is_learner"] == false)
                && region["leader"].is_object()
                && region["pending_peers"].as_array().is_some_and(Vec::is_empty)
        };
        !regions.is_empty() && regions.iter().all(whole)
    }

    /// The store (by its place) that leads the first region.
    pub async fn leader(&mut self) -> usize {
        let mut leader = 0;
        self.until("the first region has a leader", async |cluster| {
            let Some(page) = cluster.page("regions").await else { return false };
            let id = page["regions"][0]["leader"]["store_id"].as_u64().unwrap_or(0);
            leader = id as usize;
            id > 0
        })
        .await;
        leader - 1
    }

    /// A client of a store that serves, or is about to.
    pub async fn raw(&self, store: usize) -> RawClient<Channel> {
        let url = self.stores[store].url();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rpc::client::connect(&url, Duration::from_secs(5), self.tls().as_ref()).await {
                Ok(channel) => return RawClient::new(channel),
                Err(why) => assert!(Instant::now() < deadline, "{} does not serve: {why}", self.stores[store].name),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What flaredb-client says, asked at a process.
    pub fn client(&self, process: &Process, words: &[&str]) -> (bool, String) {
        self.client_at(&process.url(), words)
    }

    /// The same, asked at any URL.
    pub fn client_at(&self, url: &str, words: &[&str]) -> (bool, String) {
        let mut client = command(&built("flaredb-client"));
        client.arg("--endpoint").arg(url).args(words);
        if let Some(pki) = &self.pki {
            for (variable, file) in [("CACERT", "ca.crt"), ("CERT", "client.crt"), ("KEY", "client.key")] {
                client.env(format!("FLAREDB_{variable}"), pki.path(file));
            }
        }
        let Output { status, stdout, stderr } = client.output().unwrap();
        (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }
}

impl Process {
    pub fn url(&self) -> String {
        format!("http{}://{}:{CLIENT_PORT}", if self.secure { "s" } else { "" }, self.address)
    }

    /// The program with its flags, and more of them.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut started = command(&built(self.program));
        started.args(&self.flags).args(more);
        started
    }

    /// One more flag, which counts over earlier ones.
    pub fn flag(&mut self, flag: &str) -> &mut Process {
        self.flags.push(flag.to_owned());
        self
    }

    pub fn signal(&self, signal: libc::c_int) {
        let child = self.child.as_ref().expect("it runs");
        // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    }

    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut started = self.command(&[]);
        started.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(started.spawn().unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGSTOP: it is there, and answers nothing.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// What clients have sent it and it has not read, as Linux tells: of one that is paused, whether a request is under way.
    pub fn unread_bytes(&self) -> u64 {
        let local = format!("{:08X}:{CLIENT_PORT:04X}", u32::from_le_bytes(self.address.octets()));
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let unread = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let own = fields.next()? == local;
            let (_, received) = fields.nth(2)?.split_once(':')?;
            own.then(|| u64::from_str_radix(received, 16).ok())?
        };
        // A listener's are connections that it has not taken.
        table.lines().filter(|line| !line.contains(" 0A ")).filter_map(unread).sum()
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let mut child = self.child.take().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether it was started and has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// It has ended, and may be started again.
    pub fn reap(&mut self) {
        self.child.take().expect("it ran").wait().unwrap();
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.pd.iter_mut().chain(&mut self.stores) {
            if let Some(mut child) = process.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let said = process.said();
                let lines: Vec<&str> = said.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
                eprintln!("── the end of the log of {} ({})\n{end}", process.name, process.address);
            }
        }
    }
}

/// A program that lies where the tests were built.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().and_then(Path::parent).expect("tests lie in target/release/deps").join(name);
    assert!(built.is_file(), "{} is not there: run `make build` first", built.display());
    built
}

pub async fn put(client: &mut RawClient<Channel>, key: &str, value: &str) -> Result<(), Status> {
    let request = pb::PutRequest { context: None, key: key.to_owned().into(), value: value.to_owned().into() };
    client.put(request).await.map(drop)
}

/// Whether the key was there.
pub async fn delete(client: &mut RawClient<Channel>, key: &str) -> Result<bool, Status> {
    let request = pb::DeleteRequest { context: None, key: key.to_owned().into() };
    client.delete(request).await.map(|response| response.into_inner().existed)
}

pub async fn get(client: &mut RawClient<Channel>, key: &str) -> Result<Option<String>, Status> {
    let request = pb::GetRequest { context: None, key: key.to_owned().into() };
    let value = client.get(request).await?.into_inner().value;
    Ok(value.map(|value| String::from_utf8(value.to_vec()).unwrap()))
}
