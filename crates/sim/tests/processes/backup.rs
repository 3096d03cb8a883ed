//! Backups as operators handle them: the runbook's `tar`, archives, incremental chains, rounds by the clock; what is killed
//! midway leaves nothing that looks whole, and what is hostile is refused before anything is touched.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use proto::manifest::MANIFEST_FILE;
use proto::snapshot::{CHANGES_FILE, RESTORE_FILE};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::client::{self, Client};
use crate::cluster::{Cluster, Options, PATIENCE, command, is_etcd, program};
use crate::tell::{done, fails, figure, runs, skipped};

const WRITERS: usize = 4;
const KEYS: usize = 300;
const VALUE_BYTES: usize = 1500;

/// A member of a cluster that runs: its folder is lost, and the runbook unpacks the latest backup into a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runbooks_tar_brings_a_member_back() {
    if is_etcd() {
        return skipped("the_runbooks_tar", "its backups are restored by its own tool");
    }
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(&cluster);
    load.reach(300).await;
    let backups = folder();
    run_client(&cluster, &["snapshot", "run", "--keep", "3", "--dir", text(backups.path())]);
    let saved = newest_status(backups.path());
    load.reach(revision(&saved) + 300).await;
    // With `bootstrap = true` in the configuration, and without.
    for (round, (index, state)) in [(2, "new"), (1, "existing")].into_iter().enumerate() {
        cluster.kill(index);
        let before = client::revision(&cluster.client(0).put("before", state).await.unwrap().header);
        cluster.nodes[index].initial_state = state;
        let data = cluster.nodes[index].data_dir.clone();
        runbook(backups.path(), &data);
        assert!(data.join(RESTORE_FILE).exists() && data.join(MANIFEST_FILE).exists());
        cluster.spawn(index);
        cluster.wait_until_serving(index).await;
        let read = cluster.client(index).get("before").await.unwrap();
        assert_eq!(client::text(&read.kvs[0].value), state, "nothing of the cluster was rewound");
        assert!(client::revision(&read.header) >= before);
        let log = cluster.log(index);
        let says = "The cluster runs: the restored backup is not loaded";
        assert!(log.contains(says) && !log.contains("Restored a snapshot"), "node {index}");
        assert!(!log.contains("Founding a cluster with the restored backup"));
        let left = names(&data).into_iter().filter(|name| name.starts_with("restore.")).count();
        assert_eq!(left, 0, "what was restored is removed");
        // Its place in the cluster is its old one, under a new incarnation.
        assert_eq!(cluster.client(0).members().await.unwrap().len(), 3);
        wait_for_changes(&cluster, 3 * (round + 1)).await;
    }
    load.stop().await;
    cluster.assert_equal_hashes().await;
    // The others can be spared: it votes again.
    cluster.kill(0);
    cluster.wait_until_serving(1).await;
    cluster.client(1).put("after", "1").await.unwrap();
}

/// The whole cluster is lost, and each member gets the same backup by the runbook's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_cluster_begins_anew_from_archives() {
    if is_etcd() {
        return skipped("a_lost_cluster", "its backups are restored by its own tool");
    }
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(&cluster);
    load.reach(300).await;
    let backups = folder();
    run_client(&cluster, &["snapshot", "run", "--dir", text(backups.path())]);
    load.stop().await;
    let status = newest_status(backups.path());
    let saved = revision(&status);
    let hash = cluster.client(0).hash_kv(saved).await.unwrap();
    let old = cluster.client(0).get("/").await.unwrap().header.unwrap().cluster_id;
    assert_eq!(status["cluster"], format!("{old:016x}"));
    cluster.kill_all();
    // Where nobody may found a cluster, nobody does, and says what to do.
    for index in 0..3 {
        runbook(backups.path(), &cluster.nodes[index].data_dir);
        cluster.nodes[index].initial_state = "existing";
        cluster.spawn(index);
    }
    for index in 0..3 {
        wait_for_log(&cluster, index, "to found one with the backup in the data folder").await;
    }
    cluster.kill_all();
    for index in 0..3 {
        cluster.nodes[index].initial_state = "new";
        cluster.spawn(index);
    }
    cluster.wait_until_all_serve().await;
    for index in 0..3 {
        let header = cluster.client(index).get("/").await.unwrap().header.unwrap();
        assert_eq!(header.revision, saved);
        assert_ne!(header.cluster_id, old, "it is another cluster");
        assert_eq!(cluster.client(index).hash_kv(saved).await.unwrap().hash, hash.hash);
    }
    let founders = (0..3).filter(|index| cluster.log(*index).contains("Founding a cluster with the restored backup"));
    assert_eq!(founders.count(), 1);
    cluster.client(1).put("after", "1").await.unwrap();
    cluster.assert_equal_hashes().await;
}

/// A backup that is unpacked over the data of a member that is fine changes nothing; one whose bytes do not fit its manifest
/// is refused; and an incremental one alone is no state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unpacked_in_the_wrong_place_does_no_harm() {
    if is_etcd() {
        return skipped("what_is_unpacked_in_the_wrong_place", "its backups are restored by its own tool");
    }
    let mut cluster = Cluster::start(1).await;
    let backups = folder();
    cluster.client(0).put("a", "1").await.unwrap();
    run_client(&cluster, &["snapshot", "run", "--dir", text(backups.path())]);
    cluster.client(0).put("a", "2").await.unwrap();
    run_client(&cluster, &["snapshot", "run", "--incremental", "--dir", text(backups.path())]);
    cluster.kill(0);
    let data = cluster.nodes[0].data_dir.clone();
    untar(backups.path(), "*.tar.gz", &data);
    cluster.spawn(0);
    cluster.wait_until_all_serve().await;
    assert_eq!(client::text(&cluster.client(0).get("a").await.unwrap().kvs[0].value), "2");
    assert!(cluster.log(0).contains("its state is never rewound") && !data.join(RESTORE_FILE).exists());
    cluster.kill(0);

    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    untar(backups.path(), "*.incr.tgz", &data);
    refused_at_start(&mut cluster, "an incremental backup needs its full one");
    untar(backups.path(), "*.tar.gz", &data);
    // The newer archive's manifest lies over the older one's, and names nothing but the state.
    fs::remove_file(data.join(CHANGES_FILE)).unwrap();
    let manifest = fs::read_to_string(data.join(MANIFEST_FILE)).unwrap();
    let digit = manifest.rfind("  ").unwrap() - 1;
    let other = if manifest.as_bytes()[digit] == b'0' { "1" } else { "0" };
    let mut planted = manifest.clone();
    planted.replace_range(digit..=digit, other);
    fs::write(data.join(MANIFEST_FILE), planted).unwrap();
    refused_at_start(&mut cluster, "does not fit the SHA-256");
    fs::write(data.join(MANIFEST_FILE), manifest).unwrap();
    cluster.spawn(0);
    cluster.wait_until_all_serve().await;
    assert_eq!(client::text(&cluster.client(0).get("a").await.unwrap().kvs[0].value), "1");
}

/// Full and incremental backups under load lead to any revision in between, and to what the cluster held then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_leads_to_any_revision() {
    if is_etcd() {
        return skipped("a_chain", "it has no incremental backups");
    }
    let cluster = Cluster::start(3).await;
    let first = cluster.client(0);
    let grant = pb::LeaseGrantRequest { id: 4711, ttl: 600 };
    first.within(first.lease().lease_grant(grant)).await.unwrap();
    first.put_request(pb::PutRequest { lease: 4711, ..client::put("leased", "1") }).await.unwrap();
    let load = Load::start(&cluster);
    load.reach(200).await;
    let folder = folder();
    let path = |name: &str| text(&folder.path().join(name)).to_owned();
    run_client(&cluster, &["snapshot", "save", &path("full.tar.gz")]);
    let mut chain = vec![path("full.tar.gz")];
    for number in 1..=3 {
        load.reach(load.revision().await + 200).await;
        // Bare and archived forms may be mixed.
        let name = path(&format!("{number}.incr.{}", if number == 2 { "db" } else { "tgz" }));
        run_client(&cluster, &["snapshot", "save", "--incremental", "--since", chain.last().unwrap(), &name]);
        chain.push(name);
    }
    load.stop().await;
    let verified = run(&[&["snapshot", "verify"][..], &words(&chain)].concat());
    assert!(verified.status.success(), "{verified:?}");
    let ends: Vec<i64> = chain.iter().map(|file| revision(&status(file))).collect();
    assert!(ends.is_sorted());
    let middle = ends[1] + (ends[2] - ends[1]) / 2;
    for (wanted, until) in [(ends[0], 3), (ends[0] + 1, 3), (middle, 3), (ends[2], 3), (ends[3], 4), (ends[1], 2)] {
        let hash = first.hash_kv(wanted).await.unwrap();
        let mut restored = Cluster::new(1, Options::default());
        let data = text(&restored.nodes[0].data_dir).to_owned();
        let mut files = words(&chain[..until.min(chain.len())]);
        files.reverse();
        let to = wanted.to_string();
        let rest = ["--data-dir", &data, "--to-revision", &to];
        let done = run(&[&["snapshot", "restore"][..], &files, &rest].concat());
        assert!(done.status.success(), "{done:?}");
        restored.spawn(0);
        restored.wait_until_all_serve().await;
        let client = restored.client(0);
        assert_eq!(client::revision(&client.get("/").await.unwrap().header), wanted);
        let found = client.hash_kv(wanted).await.unwrap();
        assert_eq!((found.hash, found.compact_revision), (hash.hash, hash.compact_revision), "revision {wanted}");
        let ask = pb::LeaseTimeToLiveRequest { id: 4711, keys: true };
        let lease = client.within(client.lease().lease_time_to_live(ask)).await.unwrap();
        assert_eq!((lease.granted_ttl, lease.keys.len()), (600, 1));
        client.put("after", "1").await.unwrap();
    }
    figure(format_args!(
        "backup: a chain of {} files restored to 6 of its {} revisions",
        chain.len(),
        ends[3] - ends[0]
    ));

    // A gap, a revision that is not there, nothing to begin with: refused, and nothing is touched.
    let absent = path("absent");
    for (files, more, why) in [
        (vec![&chain[0], &chain[2]], vec![], "there is no backup of revisions"),
        (vec![&chain[0]], vec!["--to-revision", "999999999"], "not to 999999999"),
        (vec![&chain[0]], vec!["--to-revision", "3"], "lies before the full backup"),
        (vec![&chain[1]], vec![], "begins with exactly one full backup"),
    ] {
        let files: Vec<&str> = files.into_iter().map(String::as_str).collect();
        let refused = run(&[&["snapshot", "restore", "--data-dir", &absent][..], &files, &more].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(why), "{said}");
        assert!(!Path::new(&absent).exists());
    }

    // The history is compacted: changes cannot be had any more, and a round makes a full backup instead.
    let compact = pb::CompactionRequest { revision: ends[3], physical: true };
    first.within(first.kv().compact(compact)).await.unwrap();
    first.put("later", "1").await.unwrap();
    for index in 0..3 {
        cluster.client(index).get("/").await.unwrap();
    }
    let endpoint = cluster.endpoint(0);
    let since =
        ["snapshot", "save", "--incremental", "--since", &chain[1], &path("x.incr.tgz"), "--endpoint", &endpoint];
    let refused = run(&since);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("a full backup is needed"), "{said}");
    let dir = path("rounds");
    fs::create_dir(&dir).unwrap();
    fs::copy(&chain[0], format!("{dir}/chainfire-20200101T000000Z-rev{}.tar.gz", ends[0])).unwrap();
    run_client(&cluster, &["snapshot", "run", "--incremental", "--dir", &dir]);
    assert_eq!(names(Path::new(&dir)).iter().filter(|name| name.ends_with(".tar.gz")).count(), 2);
    // From there on there are changes again.
    first.put("later", "2").await.unwrap();
    run_client(&cluster, &["snapshot", "run", "--incremental", "--dir", &dir]);
    assert_eq!(names(Path::new(&dir)).iter().filter(|name| name.ends_with(".incr.tgz")).count(), 1);
    // Another cluster's changes do not follow on that.
    let other = Cluster::start(1).await;
    let endpoint = other.endpoint(0);
    let refused =
        run(&["snapshot", "save", "--incremental", "--since", &chain[0], &path("x.incr.tgz"), "--endpoint", &endpoint]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("but this is cluster"), "{said}");
}

/// What one node holds of a cluster without a quorum may be old: it is given to those only who say that they know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_quorum_gives_a_backup_only_to_who_asks_for_a_stale_one() {
    if is_etcd() {
        return skipped("a_node_without_a_quorum", "an etcd that is cut off gives what it holds");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let put = cluster.client(0).put("a", "1").await.unwrap();
    cluster.wait_until_all_serve().await;
    let backups = folder();
    let full = backups.path().join("full.tar.gz");
    run_client(&cluster, &["snapshot", "save", text(&full)]);
    (1..3).for_each(|index| cluster.kill(index));
    // A leader may answer for as long as its lease lasts, which is shorter than an election timeout.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let ask = |words: &[&str]| run(&[&["--endpoint", &cluster.endpoint(0), "--timeout", "15s"][..], words].concat());
    let saved = backups.path().join("stale.tar.gz");
    let rounds = backups.path().join("rounds");
    for refused in [
        ask(&["snapshot", "save", text(&saved)]),
        ask(&["snapshot", "run", "--dir", text(&rounds)]),
        ask(&["snapshot", "save", "--incremental", "--since", text(&full), text(&backups.path().join("x.incr.tgz"))]),
    ] {
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        // Whether the time runs out or the lack of a leader is known first is a race.
        let why = ["no leader elected", "request timed out"].iter().any(|why| said.contains(why));
        assert!(!refused.status.success() && why, "{said}");
    }
    assert!(!saved.exists() && names(&rounds).iter().all(|name| !name.ends_with(".tar.gz")));
    // As etcdctl asks.
    let client = cluster.client(0);
    let refused = match client.within(client.maintenance().snapshot(pb::SnapshotRequest {})).await {
        Ok(mut stream) => stream.message().await.map(drop).unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");

    let stale = ask(&["snapshot", "save", "--stale", text(&saved)]);
    assert!(stale.status.success(), "{stale:?}");
    assert_eq!(revision(&status(text(&saved))), client::revision(&put.header));
}

/// A link that was damaged after it was made is found before another one follows on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_follows_on_a_damaged_link() {
    if is_etcd() {
        return skipped("a damaged link", "it has no incremental backups");
    }
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let backups = folder();
    let dir = backups.path();
    let round = async |value: &str| {
        client.put("a", value).await.unwrap();
        run_client(&cluster, &["snapshot", "run", "--incremental", "--dir", text(dir)]);
    };
    let ending = |end: &str| names(dir).into_iter().filter(|name| name.ends_with(end)).collect::<Vec<_>>();
    round("1").await;
    round("2").await;
    let link = dir.join(&ending(".incr.tgz")[0]);
    let mut bytes = fs::read(&link).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&link, bytes).unwrap();
    let onto_it = run(&[
        "snapshot",
        "save",
        "--endpoint",
        &cluster.endpoint(0),
        "--incremental",
        "--since",
        text(&link),
        text(&dir.join("x.tgz")),
    ]);
    assert_eq!(onto_it.status.code(), Some(6), "{onto_it:?}");

    round("3").await;
    assert_eq!((ending(".bad").len(), ending(".incr.tgz").len(), ending(".tar.gz").len()), (1, 1, 1));
    let (full, changes) = (dir.join(&ending(".tar.gz")[0]), dir.join(&ending(".incr.tgz")[0]));
    restores_to_what_was_there(&cluster, &[text(&full), text(&changes)]).await;

    // Without a full one to go on from, there is a full one again.
    for file in [&full, &changes] {
        fs::write(file, "not any more").unwrap();
    }
    round("4").await;
    assert_eq!((ending(".bad").len(), ending(".incr.tgz").len(), ending(".tar.gz").len()), (3, 0, 1));
}

/// Backups are killed at any moment, while clients write: under a final name there is a whole one or none, and the whole
/// ones restore to what the cluster held at their revisions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_backup_leaves_nothing_that_looks_whole() {
    if is_etcd() {
        return skipped("a_killed_backup", "its backups are made by its own tool");
    }
    let cluster = Cluster::start(1).await;
    let load = Load::start(&cluster);
    load.reach(2_000).await;
    let backups = folder();
    let asked = runs(24);
    let (mut round, mut killed, mut whole) = (0, 0, BTreeSet::new());
    // However few: the last ones are killed when they may well be done.
    let steps = asked.clamp(4, 24);
    while (killed < asked || whole.is_empty()) && round < 4 * asked + steps {
        let endpoint = cluster.endpoint(0);
        let folder = ["snapshot", "run", "--keep", "100", "--dir", text(backups.path())];
        let mut child = spawn(&[&folder[..], &["--max-rate", "0", "--endpoint", &endpoint]].concat());
        tokio::time::sleep(Duration::from_millis(((round % steps + 1) * 240 / steps) as u64)).await;
        child.kill().unwrap();
        // One that had ended before does not count.
        killed += usize::from(child.wait().unwrap().signal() == Some(libc::SIGKILL));
        round += 1;
        for name in names(backups.path()).into_iter().filter(|name| name.ends_with(".tar.gz")) {
            if whole.insert(name.clone()) {
                restores_to_what_was_there(&cluster, &[text(&backups.path().join(name))]).await;
            }
        }
    }
    load.stop().await;
    assert!(killed > 0 && !whole.is_empty(), "{killed} killed, {} whole", whole.len());
    // What the killed ones left is cleared by the next.
    run_client(&cluster, &["snapshot", "run", "--keep", "100", "--dir", text(backups.path())]);
    assert!(names(backups.path()).iter().all(|name| !name.contains(".part-")));
    let whole = whole.len();
    figure(format_args!(
        "backup: {killed} of {round} killed midway, no half file; {whole} whole ones restored, with equal hashes"
    ));
    done(killed);
}

/// In the foreground, by the clock: a full one, then changes, until it is told to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_makes_a_chain_and_stops_when_told() {
    if is_etcd() {
        return skipped("a_schedule", "it has none");
    }
    let cluster = Cluster::start(1).await;
    let load = Load::start(&cluster);
    let backups = folder();
    let endpoint = cluster.endpoint(0);
    let dir = text(backups.path());
    let schedule =
        ["snapshot", "schedule", "--every", "1h", "--incremental-every", "1s", "--dir", dir, "--endpoint", &endpoint];
    let mut child = spawn(&schedule);
    let deadline = Instant::now() + PATIENCE;
    let count = |end: &str| names(backups.path()).iter().filter(|name| name.ends_with(end)).count();
    while count(".incr.tgz") < 3 {
        assert!(Instant::now() < deadline, "{:?}", names(backups.path()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let busy = run(&["snapshot", "run", "--dir", dir, "--endpoint", &endpoint]);
    assert!(busy.status.success() || String::from_utf8_lossy(&busy.stderr).contains("is under way"), "{busy:?}");
    // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    assert!(child.wait().unwrap().success(), "stopped in good order");
    load.stop().await;
    let names = names(backups.path());
    // In the order of time; the other round may have made a second full one.
    let ending = |end: &'static str| names.iter().filter(move |name| name.ends_with(end));
    let files: Vec<String> =
        ending(".tar.gz").take(1).chain(ending(".incr.tgz")).map(|name| format!("{dir}/{name}")).collect();
    restores_to_what_was_there(&cluster, &words(&files)).await;
}

/// Archives that others made: refused by name of what is wrong, and nothing is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_archives_are_refused_before_anything_is_touched() {
    if is_etcd() {
        return skipped("hostile_archives", "its backups are no archives");
    }
    let cluster = Cluster::start(1).await;
    cluster.client(0).put("a", "1").await.unwrap();
    let folder = folder();
    let good = folder.path().join("good.tar.gz");
    run_client(&cluster, &["snapshot", "save", text(&good)]);
    let make = "set -e; cd \"$1\"; rm -rf w; mkdir -p w/a out; tar -xzf good.tar.gz -C w/a --strip-components=1; cd w;";
    let pack = "tar -czf ../out/evil.tar.gz a";
    for (what, recipe) in [
        ("a link instead of the state", format!("ln -sf /etc/hostname a/restore.snapshot; {pack}")),
        ("a link beside it", format!("ln -s /etc/passwd a/extra; {pack}")),
        ("a hard link", format!("ln a/restore.snapshot a/restore.changes; {pack}")),
        ("a device", format!("mkfifo a/restore.changes; {pack}")),
        ("a file that does not belong there", format!("echo x > a/identity; {pack}")),
        ("a folder within", format!("mkdir a/raft; {pack}")),
        ("a way out", "mkdir b; cp -r a b/a; cd b; tar -czPf ../../out/evil.tar.gz ../a".to_owned()),
        ("an absolute path", "tar -czPf ../out/evil.tar.gz \"$PWD/a\"".to_owned()),
        (
            "two of a kind",
            "tar -cf e.tar a; tar -rf e.tar a/restore.snapshot; gzip e.tar; mv e.tar.gz ../out/evil.tar.gz".to_owned(),
        ),
        (
            "another content",
            format!("printf x | dd of=a/restore.snapshot bs=1 seek=700 conv=notrunc status=none; {pack}"),
        ),
        ("no manifest", format!("rm a/restore.sha256; {pack}")),
        ("cut short", "head -c 700 ../good.tar.gz > ../out/evil.tar.gz".to_owned()),
    ] {
        let script = format!("{make} {recipe}");
        let made = Command::new("sh").args(["-c", &script, "sh", text(folder.path())]).output().unwrap();
        assert!(made.status.success(), "{what}: {made:?}");
        let evil = folder.path().join("out/evil.tar.gz");
        let target = folder.path().join("target");
        for words in [
            vec!["snapshot", "restore", text(&evil), "--data-dir", text(&target)],
            vec!["snapshot", "verify", text(&evil)],
        ] {
            let refused = run(&words);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(6) && said.contains("is no intact snapshot"), "{what}: {said}");
            assert!(!target.exists(), "{what}");
        }
    }
    // What tar itself makes of a good one is as good, and sha256sum reads the manifest.
    let again = format!("{make} (cd a && sha256sum --check restore.sha256); {pack}");
    let made = Command::new("sh").args(["-c", &again, "sh", text(folder.path())]).output().unwrap();
    assert!(
        made.status.success() && String::from_utf8_lossy(&made.stdout).contains("restore.snapshot: OK"),
        "{made:?}"
    );
    assert!(run(&["snapshot", "verify", text(&folder.path().join("out/evil.tar.gz"))]).status.success());
    let listed = Command::new("tar").args(["-tzf", text(&good)]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.lines().all(|line| line.starts_with("chainfire-") && line.matches('/').count() == 1), "{listed}");
}

/// Clients that write until they are told to stop.
struct Load {
    client: Client,
    stop: Arc<AtomicBool>,
    writers: JoinSet<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS)
            .map(|writer| {
                let (client, stop) = (cluster.client(0), stop.clone());
                async move {
                    let mut number = writer;
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("key-{:04}", number % KEYS);
                        let value = format!("{number}-{}", "x".repeat(VALUE_BYTES));
                        // While a member is down, a leader may change.
                        let _ = client.put(&key, &value).await;
                        if number % 50 == 7 {
                            let _ = client.delete(&key).await;
                        }
                        number += WRITERS;
                    }
                }
            })
            .collect();
        Load { client: cluster.client(0), stop, writers }
    }

    async fn revision(&self) -> i64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.client.get("/").await {
                Ok(read) => return client::revision(&read.header),
                Err(why) => assert!(Instant::now() < deadline, "{why}"),
            }
        }
    }

    async fn reach(&self, revision: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.revision().await < revision {
            assert!(Instant::now() < deadline, "revision {revision} is not reached");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await;
    }
}

/// A new node that begins with these files holds what the cluster held at the revision of the last of them.
async fn restores_to_what_was_there(cluster: &Cluster, files: &[&str]) {
    let at = revision(&status(files.last().expect("there is a file")));
    let mut restored = Cluster::new(1, Options::default());
    let data = text(&restored.nodes[0].data_dir).to_owned();
    let done = run(&[&["snapshot", "restore", "--data-dir", &data][..], files].concat());
    assert!(done.status.success(), "{done:?}");
    restored.spawn(0);
    restored.wait_until_all_serve().await;
    same_history(cluster.client(0), restored.client(0), at).await;
}

async fn same_history(there: Client, here: Client, until: i64) {
    let was = there.hash_kv(until).await.unwrap();
    let is = here.hash_kv(until).await.unwrap();
    assert_eq!((is.hash, is.compact_revision), (was.hash, was.compact_revision), "up to revision {until}");
}

/// The comparison has teeth: another value in the past and a write that is missing do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_that_differ_are_seen() {
    let [one, other] = [Cluster::start(1).await, Cluster::start(1).await];
    let (here, there) = (one.client(0), other.client(0));
    let mut last = 0;
    for (value, elsewhere) in [("1", "1"), ("2", "altered"), ("3", "3")] {
        last = client::revision(&here.put("a", value).await.unwrap().header);
        there.put("a", elsewhere).await.unwrap();
    }
    same_history(here.clone(), there.clone(), last - 2).await;
    assert!(fails(same_history(here.clone(), there.clone(), last)).await, "another value went unnoticed");
    here.put("a", "4").await.unwrap();
    assert!(fails(same_history(here, there, last + 1)).await, "a missing write went unnoticed");
}

/// What the runbook does, word for word but for the names of the folders and the owner.
fn runbook(backups: &Path, data: &Path) {
    let script = "set -e
        mv \"$DATA\" \"$DATA.corrupted.$$\"
        mkdir -p \"$DATA\"
        LATEST_BACKUP=$(ls -t \"$BACKUPS\"/*.tar.gz | head -1)
        tar -xzf \"$LATEST_BACKUP\" -C \"$DATA\" --strip-components=1
        chown -R \"$(id -u):$(id -g)\" \"$DATA\"";
    shell(script, backups, data);
}

/// Unpacks the newest file that a pattern fits.
fn untar(backups: &Path, pattern: &str, data: &Path) {
    let script = format!("tar -xzf \"$(ls -t \"$BACKUPS\"/{pattern} | head -1)\" -C \"$DATA\" --strip-components=1");
    shell(&script, backups, data);
}

fn shell(script: &str, backups: &Path, data: &Path) {
    let done = Command::new("sh").args(["-c", script]).env("BACKUPS", backups).env("DATA", data).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// The node does not start: one line, exit code 1, and the folder stays as it was.
fn refused_at_start(cluster: &mut Cluster, why: &str) {
    let data = cluster.nodes[0].data_dir.clone();
    let before: Vec<String> = names(&data).into_iter().filter(|name| name != "owner.lock").collect();
    let output = cluster.command(0).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.code() == Some(1) && said.contains(why), "{said}");
    assert_eq!(names(&data).into_iter().filter(|name| name != "owner.lock").collect::<Vec<_>>(), before);
}

/// A new incarnation comes, takes the old one's place in a joint change, and that change ends: three of them.
async fn wait_for_changes(cluster: &Cluster, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.log(0).matches("Membership changed").count() < count {
        assert!(Instant::now() < deadline, "the new incarnation does not take its place");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_for_log(cluster: &Cluster, index: usize, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !cluster.log(index).contains(text) {
        assert!(Instant::now() < deadline, "node {index} does not say {text:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("processes-backup-").tempdir().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn words(files: &[String]) -> Vec<&str> {
    files.iter().map(String::as_str).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn client_program() -> PathBuf {
    let client = program().with_file_name("chainfire-client");
    assert!(client.is_file(), "{} is not there: run `make build` first", client.display());
    client
}

fn spawn(words: &[&str]) -> Child {
    let mut command = command(&client_program());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn run(words: &[&str]) -> Output {
    command(&client_program()).args(words).stdin(Stdio::null()).output().unwrap()
}

/// Runs our client program against any of the cluster's nodes.
fn run_client(cluster: &Cluster, words: &[&str]) -> String {
    let endpoints = cluster.endpoints().join(",");
    let done = run(&[words, &["--endpoints", &endpoints]].concat());
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn status(file: &str) -> Value {
    let done = run(&["-o", "json", "snapshot", "status", file]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn newest_status(folder: &Path) -> Value {
    let newest = names(folder).into_iter().rfind(|name| name.ends_with(".tar.gz")).unwrap();
    status(text(&folder.join(newest)))
}

fn revision(status: &Value) -> i64 {
    status["revision"].as_i64().unwrap()
}
