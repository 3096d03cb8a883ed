//! Clusters under test: processes on this machine, each with a loopback address of its own and a folder that goes away.
//!
//! etcd and Chainfire are started with the same flags, Chainfire through a link named `etcd`, so that nothing but the
//! program differs. A cluster that is dropped kills its processes and removes its folder.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use proto::etcdserverpb::{RangeRequest, StatusRequest, StatusResponse};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    secure::Secure,
    wire::{Connection, Endpoint},
    workload::{RANGE, STATUS},
};

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const HEARTBEAT_MS: u32 = 100;
/// Both systems' default, given to both by name.
pub const ELECTION_TIMEOUT_MS: u32 = 1000;
/// An etcd with ten gigabytes that the kernel has forgotten takes minutes.
const START_PATIENCE: Duration = Duration::from_secs(600);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const QUOTA_BYTES: u64 = 32 << 30;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Etcd,
    Chainfire,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Etcd => "etcd",
            Kind::Chainfire => "Chainfire",
        }
    }
}

/// A program that can be started.
#[derive(Clone)]
pub struct System {
    pub kind: Kind,
    /// What it says of itself, without its name.
    pub version: String,
    program: PathBuf,
}

impl System {
    /// Finds out the program's version by running it.
    pub fn new(kind: Kind, program: &Path) -> Result<System> {
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| format!("{} cannot be run", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Called by etcd's name, Chainfire says the version that it stands in for first, and its own below.
        let own = |line: &&str| line.starts_with("Chainfire ");
        let first = text.lines().find(own).or_else(|| text.lines().next()).unwrap_or_default();
        ensure!(output.status.success() && !first.is_empty(), "{} --version: {}", program.display(), output.status);
        let version = first.rsplit(' ').next().unwrap_or(first).to_owned();
        Ok(System { kind, version, program: program.to_owned() })
    }

    /// etcd before 3.5 copies its whole write buffer on each read after writes (etcd#12933), until it restarts.
    pub fn reads_need_restart(&self) -> bool {
        let mut numbers = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
        self.kind == Kind::Etcd && (numbers.next(), numbers.next()) < (Some(3), Some(5))
    }
}

/// A running cluster.
pub struct Cluster {
    pub system: System,
    nodes: Vec<Node>,
    folder: TempDir,
    link: PathBuf,
    /// Certificates, when clients and members speak TLS.
    secure: Option<Secure>,
}

struct Node {
    name: String,
    address: Ipv4Addr,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `count` empty nodes in a folder below `parent` and waits until each of them serves.
    pub async fn start(system: &System, count: usize, parent: &Path) -> Result<Cluster> {
        Cluster::start_with(system, count, parent, false).await
    }

    /// The same, with mutual TLS on all ports if so wanted.
    pub async fn start_with(system: &System, count: usize, parent: &Path, secured: bool) -> Result<Cluster> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).context("a folder for the data")?;
        let link = folder.path().join("etcd");
        std::os::unix::fs::symlink(fs::canonicalize(&system.program)?, &link)?;
        let [third, second] = network();
        let nodes = (1..=count as u8).map(|n| Node {
            name: format!("n{n}"),
            address: Ipv4Addr::new(127, third, second, n),
            process: None,
        });
        let nodes: Vec<Node> = nodes.collect();
        let addresses: Vec<_> = nodes.iter().map(|node| node.address).collect();
        let secure = if secured { Some(Secure::make(folder.path(), &addresses)?) } else { None };
        let mut cluster = Cluster { system: system.clone(), nodes, folder, link, secure };
        for index in 0..count {
            cluster.spawn(index)?;
        }
        for index in 0..count {
            cluster.wait_until_serving(index).await?;
        }
        Ok(cluster)
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        let tls = self.secure.as_ref().map(Secure::client);
        let endpoint = |node: &Node| Endpoint { address: (node.address, CLIENT_PORT).into(), tls: tls.clone() };
        self.nodes.iter().map(endpoint).collect()
    }

    pub fn process_ids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(Child::id).collect()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The index of the node that says of itself that it leads.
    pub async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + START_PATIENCE;
        while Instant::now() < deadline {
            for (index, endpoint) in self.endpoints().into_iter().enumerate() {
                if self.nodes[index].process.is_some() && status(&endpoint).await.is_ok_and(|s| leads(&s)) {
                    return Ok(index);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{}: no node leads", self.system.kind.name())
    }

    /// Stops all nodes politely.
    pub async fn stop(&mut self) -> Result<()> {
        for node in self.nodes.iter().filter_map(|node| node.process.as_ref()) {
            signal(node, libc::SIGTERM);
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                while process.try_wait()?.is_none() && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                process.kill().ok();
                process.wait()?;
            }
        }
        Ok(())
    }

    /// Starts all nodes again; returns the time until each of them has served a linearizable read.
    pub async fn start_again(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        for index in 0..self.nodes.len() {
            self.spawn(index)?;
        }
        for index in 0..self.nodes.len() {
            self.wait_until_serving(index).await?;
        }
        Ok(begun.elapsed())
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut process) = self.nodes[index].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Starts a killed node again and waits until it serves.
    pub async fn revive(&mut self, index: usize) -> Result<()> {
        self.spawn(index)?;
        self.wait_until_serving(index).await
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let scheme = if self.secure.is_some() { "https" } else { "http" };
        let peer = |node: &Node| format!("{scheme}://{}:{PEER_PORT}", node.address);
        let members: Vec<String> = self.nodes.iter().map(|node| format!("{}={}", node.name, peer(node))).collect();
        let node = &self.nodes[index];
        let client = format!("{scheme}://{}:{CLIENT_PORT}", node.address);
        let flags = [
            ("name", node.name.clone()),
            ("data-dir", self.folder.path().join(&node.name).display().to_string()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer(node)),
            ("initial-advertise-peer-urls", peer(node)),
            ("initial-cluster", members.join(",")),
            ("initial-cluster-state", "new".into()),
            ("initial-cluster-token", "bench".into()),
            ("heartbeat-interval", HEARTBEAT_MS.to_string()),
            ("election-timeout", ELECTION_TIMEOUT_MS.to_string()),
            ("quota-backend-bytes", QUOTA_BYTES.to_string()),
        ];
        let log = File::options().create(true).append(true).open(self.log_path(index))?;
        let child = Command::new(&self.link)
            .args(flags.map(|(name, value)| format!("--{name}={value}")))
            .args(self.secure.iter().flat_map(|secure| secure.flags(index + 1)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.system.program.display()))?;
        self.nodes[index].process = Some(child);
        Ok(())
    }

    async fn wait_until_serving(&mut self, index: usize) -> Result<()> {
        let endpoint = self.endpoints().swap_remove(index);
        let deadline = Instant::now() + START_PATIENCE;
        while !serves(&endpoint).await {
            let process = self.nodes[index].process.as_mut().context("the node was not started")?;
            if let Some(status) = process.try_wait()? {
                bail!("{} ended at start ({status}):\n{}", self.system.kind.name(), self.log_tail(index));
            }
            ensure!(Instant::now() < deadline, "{} does not serve:\n{}", self.system.kind.name(), self.log_tail(index));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", self.nodes[index].name))
    }

    fn log_tail(&self, index: usize) -> String {
        let text = fs::read_to_string(self.log_path(index)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// Whether a linearizable read is answered.
async fn serves(endpoint: &Endpoint) -> bool {
    let read = RangeRequest { key: "/".into(), ..Default::default() }.encode_to_vec();
    let once = async {
        let mut connection = Connection::open(endpoint).await?;
        connection.ask(RANGE, &read, Duration::from_secs(2)).await
    };
    tokio::time::timeout(Duration::from_secs(2), once).await.is_ok_and(|answer| answer.is_ok())
}

async fn status(endpoint: &Endpoint) -> Result<StatusResponse> {
    let once = async {
        let mut connection = Connection::open(endpoint).await?;
        connection.ask(STATUS, &StatusRequest::default().encode_to_vec(), Duration::from_secs(1)).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(1), once).await.context("no answer")??;
    Ok(StatusResponse::decode(&answer[..])?)
}

fn leads(status: &StatusResponse) -> bool {
    status.leader != 0 && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
}

fn signal(process: &Child, number: i32) {
    // SAFETY: takes numbers. The child has not been waited for, so the id is still its own.
    unsafe {
        libc::kill(process.id() as libc::pid_t, number);
    }
}

/// The middle bytes of this cluster's addresses: no two clusters of one process, and rarely two of other ones, share them.
pub fn network() -> [u8; 2] {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let own = std::process::id();
    [(own % 120) as u8 + 100, NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add((own / 120) as u8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_etcd_needs_a_restart() {
        let system = |kind, version: &str| System { kind, version: version.into(), program: PathBuf::new() };
        assert!(system(Kind::Etcd, "3.4.23").reads_need_restart());
        assert!(!system(Kind::Etcd, "3.5.16").reads_need_restart());
        assert!(!system(Kind::Etcd, "3.10.0").reads_need_restart());
        assert!(!system(Kind::Chainfire, "0.1.0").reads_need_restart());
    }

    #[test]
    fn a_leader_knows_itself() {
        let header = |member_id| Some(proto::etcdserverpb::ResponseHeader { member_id, ..Default::default() });
        assert!(leads(&StatusResponse { header: header(7), leader: 7, ..Default::default() }));
        assert!(!leads(&StatusResponse { header: header(7), leader: 8, ..Default::default() }));
        assert!(!leads(&StatusResponse { header: header(0), leader: 0, ..Default::default() }));
    }
}
