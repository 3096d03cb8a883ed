//! A placement driver and FlareDB stores under test: processes on this machine, each with a loopback address of its own and
//! a folder that goes away with them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::network;
use crate::wire::Endpoint;
use crate::workload::KeySpace;

const CLIENT_PORT: u16 = 2379;
const RAFT_PORT: u16 = 2380;
const PD_PLACE: u8 = 11;
const STORES_FROM: u8 = 21;
/// Nothing that is waited for here takes longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// A split is taken on after this at the latest; or it is refused for a reason that does not pass.
const SPLIT_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub struct Stores {
    pd: Process,
    pub stores: Vec<Process>,
    folder: TempDir,
}

pub struct Process {
    name: String,
    address: Ipv4Addr,
    child: Option<Child>,
}

impl Stores {
    /// Starts a placement driver and so many empty stores from the programs beside this one, in a folder below `parent`, and
    /// waits until the first region has its replicas.
    pub async fn start(count: u8, parent: &Path) -> Result<Stores> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).context("a folder for the data")?;
        let [third, second] = network();
        let process =
            |name: String, place| Process { name, address: Ipv4Addr::new(127, third, second, place), child: None };
        let mut cluster = Stores {
            pd: process("pd".to_owned(), PD_PLACE),
            stores: (0..count).map(|index| process(format!("store{}", index + 1), STORES_FROM + index)).collect(),
            folder,
        };
        let at = format!("1={}:{RAFT_PORT}", cluster.pd.address);
        let folder = cluster.folder.path().to_owned();
        cluster.pd.spawn(
            "placement-driver",
            &folder,
            &["--node-id=1".to_owned(), format!("--initial-members={at}")],
        )?;
        let pd = format!("--pd-addr={}:{CLIENT_PORT}", cluster.pd.address);
        for (index, store) in cluster.stores.iter_mut().enumerate() {
            store.spawn("flaredb", &folder, &[format!("--store-id={}", index + 1), pd.clone()])?;
        }
        let replicas = usize::from(count.min(3));
        cluster
            .until("the first region is replicated", async |cluster| cluster.regions_with(replicas).await == 1)
            .await?;
        Ok(cluster)
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        let endpoint = |store: &Process| Endpoint { address: (store.address, CLIENT_PORT).into(), tls: None };
        self.stores.iter().map(endpoint).collect()
    }

    /// As [`Stores::endpoints`], without those that were killed.
    pub fn endpoints_alive(&self) -> Vec<Endpoint> {
        let all = self.stores.iter().zip(self.endpoints());
        all.filter(|(store, _)| store.child.is_some()).map(|(_, endpoint)| endpoint).collect()
    }

    /// Of the stores that run.
    pub fn process_ids(&self) -> Vec<u32> {
        self.stores.iter().filter_map(|store| store.child.as_ref()).map(Child::id).collect()
    }

    pub fn pd_process_id(&self) -> Option<u32> {
        self.pd.child.as_ref().map(Child::id)
    }

    /// Regions that have so many voters, all caught up, and a leader, by the placement driver's knowledge.
    async fn regions_with(&self, voters: usize) -> usize {
        let Ok(page) = self.page("GET", "regions", None).await else { return 0 };
        let whole = |region: &&Value| {
            let peers = region["peers"].as_array().map_or(0, Vec::len);
            let pending = region["pending_peers"].as_array().is_some_and(|pending| !pending.is_empty());
            peers == voters && region["leader"].is_object() && !pending
        };
        page["regions"].as_array().into_iter().flatten().filter(whole).count()
    }

    /// The place of the store that leads the first region.
    pub async fn leader(&self) -> Result<usize> {
        let page = self.page("GET", "regions", None).await?;
        let store = page["regions"][0]["leader"]["store_id"].as_u64().context("the first region has no leader")?;
        Ok(store as usize - 1)
    }

    /// Regions are cut where the measurement says, and nowhere else.
    pub async fn cut_by_hand_only(&self) -> Result<()> {
        self.set_policy(&serde_json::json!({
            "load-split-requests-per-sec": 0,
            "load-split-bytes-per-sec": 0,
            "max-merge-region-size": 0,
        }))
        .await
    }

    /// Changes the placement driver's policy.
    pub async fn set_policy(&self, change: &Value) -> Result<()> {
        self.page("POST", "config/schedule", Some(change)).await.map(drop)
    }

    /// Whether all regions have their replicas and a leader, and nothing is under way.
    pub async fn is_at_rest(&self) -> bool {
        let Ok(operators) = self.page("GET", "operators", None).await else { return false };
        let none = operators.as_array().is_some_and(Vec::is_empty);
        let replicas = self.stores.len().min(3);
        none && matches!(self.regions().await, Ok(all) if self.regions_with(replicas).await == all.len())
    }

    /// By store: bytes and regions in it, as the regions' sizes are known.
    pub async fn held_bytes(&self) -> Result<Vec<(u64, usize)>> {
        let mut held = vec![(0, 0); self.stores.len()];
        for region in self.regions().await? {
            let mib = region["approximate_size"].as_u64().unwrap_or_default();
            for store in stores_of(&region) {
                let Some((bytes, regions)) = held.get_mut(store - 1) else { continue };
                *bytes += mib << 20;
                *regions += 1;
            }
        }
        Ok(held)
    }

    /// How many regions have a replica in the store at this place.
    pub async fn regions_with_peer_in(&self, index: usize) -> Result<usize> {
        Ok(self.regions().await?.iter().filter(|region| stores_of(region).any(|store| store == index + 1)).count())
    }

    async fn regions(&self) -> Result<Vec<Value>> {
        let mut page = self.page("GET", "regions", None).await?;
        match page["regions"].take() {
            Value::Array(regions) => Ok(regions),
            _ => bail!("GET regions: there are none"),
        }
    }

    /// By store: the ranges of keys, as numbers of the space, that it leads.
    pub async fn led_keys(&self, space: &KeySpace) -> Result<Vec<Vec<Range<u64>>>> {
        let mut led = vec![Vec::new(); self.stores.len()];
        for region in self.regions().await? {
            let bound = |name: &str| region[name].as_str().and_then(unhex).as_deref().and_then(KeySpace::number);
            let (from, to) = (bound("start_key").unwrap_or(0), bound("end_key").unwrap_or(space.keys));
            let leader = region["leader"]["store_id"].as_u64().context("a region has no leader")?;
            if from < to.min(space.keys) {
                led[leader as usize - 1].push(from..to.min(space.keys));
            }
        }
        Ok(led)
    }

    /// Splits the first region at these keys, which must ascend and lie in it.
    pub async fn split(&mut self, keys: &[Vec<u8>]) -> Result<()> {
        let hex = |key: &Vec<u8>| key.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let page = self.page("GET", "regions", None).await?;
        let first = page["regions"].as_array().into_iter().flatten().min_by_key(|region| region["id"].as_u64());
        let id = first.and_then(|region| region["id"].as_u64()).context("there is no region")?;
        let keys: Vec<String> = keys.iter().map(hex).collect();
        let body = serde_json::json!({ "name": "split-region", "region_id": id, "keys": keys });
        let until = Instant::now() + SPLIT_WITHIN;
        // One at a time: the one before may not have been told to the placement driver yet.
        while let Err(why) = self.page("POST", "operators", Some(&body)).await {
            ensure!(Instant::now() < until, "splitting: {why}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// A metric of one store.
    pub async fn metric_of(&self, store: usize, name: &str) -> Result<f64> {
        let store = &self.stores[store];
        let page = fetch(store.address, "GET", "/metrics", None).await?;
        let text = String::from_utf8_lossy(&page);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        Ok(line.with_context(|| format!("{} has no {name}", store.name))?.trim().parse::<f64>()?)
    }

    /// The sum of a metric over the stores that run.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for at in (0..self.stores.len()).filter(|at| self.stores[*at].child.is_some()) {
            sum += self.metric_of(at, name).await?;
        }
        Ok(sum)
    }

    /// Asks again and again until it holds.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Stores) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self).await {
            if Instant::now() > deadline {
                bail!("it never came: {what}\n{}", self.last_words());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut child) = self.stores[index].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    async fn page(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = fetch(self.pd.address, method, &format!("/pd/api/v1/{path}"), body).await?;
        let value: Value = serde_json::from_slice(&answer).with_context(|| format!("{method} {path}: no JSON"))?;
        match value.get("error") {
            None => Ok(value),
            Some(why) => bail!("{method} {path}: {why}"),
        }
    }

    fn last_words(&self) -> String {
        let of = |process: &Process| {
            let text = fs::read_to_string(self.folder.path().join(format!("{}.log", process.name))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("{}:\n{}\n", process.name, lines[lines.len().saturating_sub(4)..].join("\n"))
        };
        self.stores.iter().chain([&self.pd]).map(of).collect()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// The ids of the stores with a replica of a region.
fn stores_of(region: &Value) -> impl Iterator<Item = usize> {
    let peers = region["peers"].as_array().into_iter().flatten();
    peers.filter_map(|peer| peer["store_id"].as_u64()).map(|store| store as usize)
}

impl Process {
    fn spawn(&mut self, program: &str, folder: &Path, flags: &[String]) -> Result<()> {
        let log = File::options().create(true).append(true).open(folder.join(format!("{}.log", self.name)))?;
        let program: PathBuf = std::env::current_exe()?.with_file_name(program);
        let child = Command::new(&program)
            .arg(format!("--data-dir={}", folder.join(&self.name).display()))
            .arg(format!("--api-addr={}:{CLIENT_PORT}", self.address))
            .arg(format!("--raft-addr={}:{RAFT_PORT}", self.address))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        for child in self.stores.iter_mut().chain([&mut self.pd]).filter_map(|process| process.child.as_mut()) {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// One request over a connection of its own; the body of the answer, whatever its status.
async fn fetch(address: Ipv4Addr, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
    let once = async {
        let mut connection = TcpStream::connect((address, CLIENT_PORT)).await?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}:{CLIENT_PORT}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        connection.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        let mut answer = Vec::new();
        connection.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").context("no answer")?;
        Ok(answer.split_off(head + 4))
    };
    tokio::time::timeout(Duration::from_secs(30), once).await.context("no answer in 30 s")?
}
