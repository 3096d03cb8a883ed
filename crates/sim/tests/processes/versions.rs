//! Members of two versions: a rolling upgrade and the way back, with kills and wiped folders in between, so that each version
//! leads, follows and fills the other; and an older program that meets what a later one wrote.
//!
//! The other build is `chainfire` in the folder `CENTRA_OTHER_BIN`; `scripts/build-other.sh` makes one.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::Rng;
use chainfire::machine::layout;
use sim::linear::Verdict;
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, WriteBatch};

use crate::cluster::{Cluster, Options, is_etcd};
use crate::durability::{Writers, assert_holds};
use crate::history::Recording;
use crate::lost_logs::peer_of;
use crate::membership::{wait_for_voters, wipe};
use crate::planted::{judge, planted_faults_are_seen};
use crate::tell::{done, figure, runs, seed, skipped};
use crate::watching::Watched;

const OTHER: &str = "CENTRA_OTHER_BIN";
const CLIENTS: u64 = 8;
const KEYS: u64 = 5;
const DOWN_MS_MAX: u64 = 800;
const ENDS_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_keep_what_one_promises() {
    if is_etcd() {
        return skipped("two_versions", "the other version is a Chainfire");
    }
    let Some(folder) = std::env::var_os(OTHER) else {
        return skipped("two_versions", &format!("{OTHER} names no folder with another build"));
    };
    let other = PathBuf::from(folder).join("chainfire");
    assert!(other.is_file(), "{OTHER}: there is no {}", other.display());
    let (seed, rounds) = (seed(), runs(1));
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let mut upgrade = Upgrade::begin(&other).await;
        let recording = Recording::start(&upgrade.cluster.endpoints(), CLIENTS, KEYS, seed + round as u64);
        upgrade.there_and_back(&mut rng).await;
        let before_the_end = recording.answered();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(recording.answered() > before_the_end, "clients are served again");
        let history = recording.finish().await;
        assert_eq!(judge(&history), Verdict::Linearizable, "(seed {seed})");
        planted_faults_are_seen(&history);
        upgrade.cluster.assert_equal_hashes().await;
        let calls = history.len();

        let mut upgrade_watched = Upgrade::begin(&other).await;
        let watched = Watched::start(&upgrade_watched.cluster);
        upgrade_watched.there_and_back(&mut rng).await;
        let (events, _) = watched.judge(&upgrade_watched.cluster).await;
        upgrade_watched.cluster.assert_equal_hashes().await;
        figure(format_args!(
            "two versions, round {round}: {calls} calls in one order, {} events told; {} restarts, {} kills of leaders (of the \
             other version in {}), {} folders wiped (seed {seed})",
            events.len(),
            upgrade.restarts + upgrade_watched.restarts,
            upgrade.kills + upgrade_watched.kills,
            upgrade.kills_of_other + upgrade_watched.kills_of_other,
            upgrade.wiped + upgrade_watched.wiped
        ));
        done(1);
    }
}

/// A cluster of three, all of them of the other version at the beginning and in the end.
struct Upgrade {
    cluster: Cluster,
    own: PathBuf,
    other: PathBuf,
    restarts: usize,
    kills: usize,
    kills_of_other: usize,
    wiped: usize,
}

impl Upgrade {
    async fn begin(program: &Path) -> Upgrade {
        let mut cluster = Cluster::new(3, Options::brisk());
        let own = cluster.program();
        let folder = cluster.folder().join("other");
        fs::create_dir(&folder).unwrap();
        let other = folder.join("etcd");
        symlink(fs::canonicalize(program).unwrap(), &other).unwrap();
        cluster.nodes.iter_mut().for_each(|node| node.program = other.clone());
        (0..3).for_each(|index| cluster.spawn(index));
        cluster.wait_until_all_serve().await;
        Upgrade { cluster, own, other, restarts: 0, kills: 0, kills_of_other: 0, wiped: 0 }
    }

    async fn there_and_back(&mut self, rng: &mut Rng) {
        for to in [self.own.clone(), self.other.clone()] {
            let leader = self.cluster.leader().await;
            // The leader last, as an operator does it; who leads then is another matter.
            for (nth, index) in [(leader + 1) % 3, (leader + 2) % 3, leader].into_iter().enumerate() {
                self.cluster.stop(index).await;
                self.cluster.nodes[index].program = to.clone();
                self.cluster.spawn(index);
                self.cluster.wait_until_serving(index).await;
                self.restarts += 1;
                self.kill_the_leader(rng).await;
                if nth < 2 {
                    self.wipe_one(if rng.percent(50) { index } else { leader }).await;
                }
            }
        }
    }

    async fn kill_the_leader(&mut self, rng: &mut Rng) {
        let leader = self.cluster.leader().await;
        self.kills += 1;
        self.kills_of_other += usize::from(self.cluster.nodes[leader].program == self.other);
        self.cluster.kill(leader);
        tokio::time::sleep(Duration::from_millis(rng.below(DOWN_MS_MAX))).await;
        self.cluster.spawn(leader);
        self.cluster.wait_until_serving(leader).await;
    }

    /// Whoever leads fills it with a snapshot.
    async fn wipe_one(&mut self, index: usize) {
        self.cluster.kill(index);
        wipe(&self.cluster, index);
        self.wiped += 1;
        self.cluster.spawn(index);
        self.cluster.wait_until_serving(index).await;
        wait_for_voters(&self.cluster, 3).await;
    }
}

/// As after an upgrade that changed the files, and a way back: the program says what is the matter in one line, and nothing
/// is thrown away or set aside as damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_version_wrote_is_left_alone() {
    if is_etcd() {
        return skipped("a_later_version", "an etcd has its own files");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let old_peer = peer_of(&cluster, leader, victim).await;
    let writers = Writers::start(&cluster.endpoints(), 2, "before");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut acknowledged = writers.finish().await;
    let dir = cluster.nodes[victim].data_dir.clone();
    let cases: [(&str, Step); 2] = [
        ("the store has layout 3, this program knows 2", step_of_state),
        ("the log has format 2, and this program knows 1", step_of_log),
    ];
    for (words, step) in cases {
        cluster.stop(victim).await;
        step(&dir, 1);
        let before = names(&dir);
        cluster.spawn(victim);
        let begun = Instant::now();
        while !cluster.has_ended(victim) {
            assert!(begun.elapsed() < ENDS_WITHIN, "it goes on with what it does not know: {words}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cluster.kill(victim);
        let log = cluster.log(victim);
        assert_eq!(left_alone(&log, words, &before, &names(&dir)), Ok(()), "{log}");
        let writers = Writers::start(&[cluster.endpoint(leader)], 2, words);
        tokio::time::sleep(Duration::from_millis(300)).await;
        acknowledged.extend(writers.finish().await);

        step(&dir, -1);
        cluster.spawn(victim);
        cluster.wait_until_serving(victim).await;
        assert_eq!(peer_of(&cluster, leader, victim).await, old_peer, "it is who it was");
        assert_holds(&cluster.client(victim), &acknowledged).await;
    }
    cluster.assert_equal_hashes().await;
}

/// Makes files those of a version that is so much later.
type Step = fn(&Path, i8);

fn step_of_state(dir: &Path, by: i8) {
    let engine = RocksEngine::open(dir, &layout::FAMILIES, &RocksOptions::default()).unwrap();
    let mut value = engine.get(layout::META, layout::STATE).unwrap().expect("it has a state").to_vec();
    value[0] = value[0].wrapping_add_signed(by);
    let mut batch = WriteBatch::new();
    batch.put(layout::META, layout::STATE, &value);
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
}

/// Three slots of 32 bytes: magic, a checksum of what follows it, the version.
fn step_of_log(dir: &Path, by: i8) {
    let file = fs::File::options().read(true).write(true).open(dir.join("raft/mark")).unwrap();
    for at in [0, 512, 1024] {
        let mut slot = [0; 32];
        file.read_exact_at(&mut slot, at).unwrap();
        slot[8] = slot[8].wrapping_add_signed(by);
        let checksum = crc32fast::hash(&slot[8..]);
        slot[4..8].copy_from_slice(&checksum.to_le_bytes());
        file.write_all_at(&slot, at).unwrap();
    }
}

/// What is wrong with what a node has said and done that met files of a later version, if anything.
fn left_alone(log: &str, words: &str, before: &[String], now: &[String]) -> Result<(), String> {
    let said = log.matches(words).count();
    if said != 1 {
        return Err(format!("{words:?} is said {said} times"));
    }
    if log.contains("quarantine") || log.contains("CF4001") {
        return Err("they are taken for damaged".to_owned());
    }
    if before == now { Ok(()) } else { Err(format!("of {before:?} there is left {now:?}")) }
}

/// Of a data folder, but for the engine's own, which it numbers anew at each opening.
fn names(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let engines = ["LOG", "MANIFEST-", "OPTIONS-", "CURRENT", "IDENTITY", "LOCK"];
    let mut own: Vec<String> =
        all.filter(|name| !engines.iter().any(|of| name.starts_with(of)) && !name.contains('.')).collect();
    own.sort();
    own
}

/// The check has teeth: words that are not said or said again and again, files that are taken for damaged, set aside or thrown away do
/// not pass.
#[test]
fn files_that_are_not_left_alone_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["identity", "000011.sst", "MANIFEST-000010"] {
        fs::write(path(name), "").unwrap();
    }
    fs::create_dir(path("raft")).unwrap();
    let before = names(folder.path());
    let words = "the log has format 2";
    let line = format!("ERROR {words}\n");
    let judged = |log: &str| left_alone(log, words, &before, &names(folder.path()));
    for bad in ["", &line.repeat(2), &format!("{line}this member is quarantined"), &format!("{line}code=CF4001")] {
        assert!(judged(bad).is_err(), "{bad:?} went unnoticed");
    }
    // The engine's own.
    fs::rename(path("MANIFEST-000010"), path("MANIFEST-000012")).unwrap();
    assert_eq!(judged(&line), Ok(()));
    fs::rename(path("raft"), path("lost-1")).unwrap();
    assert!(judged(&line).is_err(), "a log that was set aside went unnoticed");
    fs::remove_dir(path("lost-1")).unwrap();
    assert!(judged(&line).is_err(), "a log that was thrown away went unnoticed");
}
