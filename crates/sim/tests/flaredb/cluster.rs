//! A placement driver and stores, each a process with a loopback address, a folder and a log of its own. All end with the
//! test; when it fails, the ends of the logs are shown.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use proto::flaredb as pb;
use rpc::client::RawClient;
use serde_json::Value;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

use crate::machine::{Network, command};

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
}

pub struct Process {
    pub name: String,
    pub address: Ipv4Addr,
    program: &'static str,
    flags: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// So many members of the placement driver and so many stores, all started, and the first region on as many stores as
    /// there are, three at most.
    pub async fn start(members: usize, stores: usize) -> Cluster {
        let mut cluster = Cluster::new(members, stores);
        cluster.pd.iter_mut().chain(&mut cluster.stores).for_each(Process::spawn);
        let replicas = stores.min(3);
        cluster.until("the first region is replicated", async |cluster| cluster.has_replicas(replicas).await).await;
        cluster
    }

    pub fn new(members: usize, stores: usize) -> Cluster {
        let folder = tempfile::Builder::new().prefix("flaredb-").tempdir().unwrap();
        let network = Network::take(CLIENT_PORT);
        let mut cluster = Cluster { pd: Vec::new(), stores: Vec::new(), folder, network };
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
        let index = self.stores.len();
        let mut process = self.process("flaredb", &format!("store{}", index + 1), STORES_FROM + index as u8);
        let pd: Vec<String> = self.pd.iter().map(|pd| format!("{}:{CLIENT_PORT}", pd.address)).collect();
        process.flags.extend([format!("--store-id={id}"), format!("--pd-addr={}", pd.join(","))]);
        process.flags.push("--tick-interval-ms=50".to_owned());
        self.stores.push(process);
        index
    }

    fn process(&self, program: &'static str, name: &str, place: u8) -> Process {
        let address = self.network.address(place);
        let flags = vec![
            format!("--data-dir={}", self.folder.path().join(name).display()),
            format!("--api-addr={address}:{CLIENT_PORT}"),
            format!("--raft-addr={address}:{RAFT_PORT}"),
        ];
        let log = self.folder.path().join(format!("{name}.log"));
        Process { name: name.to_owned(), address, program, flags, log, child: None }
    }

    pub fn data_dir(&self, process: &Process) -> PathBuf {
        self.folder.path().join(&process.name)
    }

    /// Asks again and again until it holds.
    pub async fn until(&mut self, what: &str, mut holds: impl AsyncFnMut(&mut Cluster) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self).await {
            assert!(Instant::now() < deadline, "it never came: {what}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// A page of the placement driver; `None`: it is not to be had now.
    pub async fn page(&self, path: &str) -> Option<Value> {
        for pd in self.pd.iter().filter(|pd| pd.child.is_some()) {
            if let Ok(page) = rpc::client::page(&pd.url(), &format!("/pd/api/v1/{path}"), None).await
                && let Ok(value) = serde_json::from_slice::<Value>(&page)
                && value.get("error").is_none()
            {
                return Some(value);
            }
        }
        None
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
            match rpc::client::connect(&url, Duration::from_secs(5), None).await {
                Ok(channel) => return RawClient::new(channel),
                Err(why) => assert!(Instant::now() < deadline, "{} does not serve: {why}", self.stores[store].name),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What flaredb-client says, asked at a process.
    pub fn client(&self, process: &Process, words: &[&str]) -> (bool, String) {
        let mut client = command(&built("flaredb-client"));
        client.arg("--endpoint").arg(process.url()).args(words);
        let Output { status, stdout, stderr } = client.output().unwrap();
        (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }
}

impl Process {
    pub fn url(&self) -> String {
        format!("http://{}:{CLIENT_PORT}", self.address)
    }

    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut started: Command = command(&built(self.program));
        started.args(&self.flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(started.spawn().unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
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

    /// SIGSTOP, or SIGCONT.
    pub fn pause(&self, paused: bool) {
        let id = self.child.as_ref().expect("it runs").id();
        // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(id as libc::pid_t, if paused { libc::SIGSTOP } else { libc::SIGCONT }) };
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
