//! The program itself against a mock server: what it prints, how it fails, with which exit code.

mod mock;
mod operations;
mod secure;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use mock::{Mock, run};
use prost::Message as _;
use proto::mvccpb::KeyValue;
use proto::snapshot::{Header, Writer};
use sha2::{Digest as _, Sha256};

#[test]
fn keys_are_put_read_and_deleted() {
    let mock = Mock::start();
    assert_eq!(mock.ok(&["put", "greeting", "hello"]), "OK\n");
    assert_eq!(mock.ok(&["put", "greeting", "hello again", "--prev-kv"]), "OK\ngreeting\nhello\n");
    assert_eq!(mock.ok(&["get", "greeting"]), "greeting\nhello again\n");
    assert_eq!(mock.ok(&["get", "greeting", "--print-value-only"]), "hello again\n");
    assert_eq!(mock.ok(&["get", "nothing"]), "");
    for key in ["/a/1", "/a/2", "/b/1"] {
        mock.ok(&["put", key, "x"]);
    }
    assert_eq!(mock.ok(&["get", "--prefix", "/a/", "--keys-only"]), "/a/1\n/a/2\n");
    assert_eq!(mock.ok(&["get", "/a/1", "/b/1", "--keys-only", "--limit", "1"]), "/a/1\n");
    assert_eq!(mock.ok(&["get", "/a/2", "--from-key", "--keys-only", "--order", "descend"]), "greeting\n/b/1\n/a/2\n");
    assert_eq!(mock.ok(&["get", "--prefix", "--count-only"]), "4\n");
    assert_eq!(mock.ok(&["get", "/a/1", "--hex"]), "\\x2f\\x61\\x2f\\x31\n\\x78\n");
    mock.node.no_streams.store(true, SeqCst);
    assert_eq!(mock.ok(&["get", "--prefix", "/a/"]), "/a/1\nx\n/a/2\nx\n");
    assert_eq!(mock.ok(&["del", "--prefix", "/"]), "3\n");
    assert_eq!(mock.run_with(&["put", "from-stdin"], "line\n").0, 0);
    let json = mock.ok(&["get", "from-stdin", "-o", "json"]);
    assert!(json.contains("\"key\":\"ZnJvbS1zdGRpbg==\"") && json.contains("\"value\":\"bGluZQo=\""), "{json}");
    let table = mock.ok(&["get", "greeting", "-o", "table"]);
    assert!(table.contains("KEY") && table.contains("hello again"), "{table}");
}

#[test]
fn transactions_are_read_from_standard_input() {
    let mock = Mock::start();
    let text = "version(\"lock\") = \"0\"\n\nput lock mine\n\nget lock\n";
    assert_eq!(mock.run_with(&["txn"], text), (0, "SUCCESS\n\nOK\n".into(), "".into()));
    assert_eq!(mock.run_with(&["txn"], text), (0, "FAILURE\n\nlock\nmine\n".into(), "".into()));
    let (code, _, complaint) = mock.run_with(&["txn"], "size(lock) = 1\n\nput a b\n");
    assert_eq!(code, 2);
    assert!(complaint.starts_with("Error: line 1 of the transaction: `size` cannot be compared"), "{complaint}");
}

#[test]
fn watches_follow_and_survive_their_node() {
    let (first, second) = (Mock::start(), Mock::start());
    let endpoints = format!("{},{}", first.endpoint, second.endpoint);
    let mut watch = Command::new(env!("CARGO_BIN_EXE_chainfire-client"))
        .args(["--endpoints", &endpoints, "watch", "--prefix", "k", "--rev", "2", "--events", "4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Both nodes hold the same history, as replicas do.
    for mock in [&first, &second] {
        mock.ok(&["put", "before", "0"]);
        mock.ok(&["put", "k1", "one"]);
        mock.ok(&["put", "other", "x"]);
        mock.ok(&["del", "k1"]);
    }
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let mut next = |count: usize| lines.by_ref().take(count).collect::<Vec<_>>();
    assert_eq!(next(6), ["PUT", "k1", "one", "DELETE", "k1", ""]);
    first.stop();
    second.ok(&["put", "k2", "two"]);
    second.ok(&["put", "k3", "three"]);
    assert_eq!(next(6), ["PUT", "k2", "two", "PUT", "k3", "three"]);
    assert!(watch.wait().unwrap().success());
    let (code, _, complaint) = second.run(&["watch", "k", "--rev", "1"]);
    assert!(code == 1 && complaint.contains("history begins at revision 2"), "{complaint}");
}

#[test]
fn leases() {
    let mock = Mock::start();
    assert_eq!(mock.ok(&["lease", "grant", "60"]), "lease 0000000000007bad granted with TTL(60s)\n");
    mock.ok(&["put", "session", "x", "--lease", "7bad"]);
    assert_eq!(
        mock.ok(&["lease", "timetolive", "7bad", "--keys"]),
        "lease 0000000000007bad granted with TTL(60s), remaining(55s), attached keys([session])\n"
    );
    assert_eq!(mock.ok(&["lease", "list"]), "found 1 leases\n0000000000007bad\n");
    assert_eq!(mock.ok(&["lease", "keep-alive", "7bad", "--once"]), "lease 0000000000007bad keepalived with TTL(60)\n");
    assert_eq!(mock.ok(&["lease", "revoke", "7bad"]), "lease 0000000000007bad revoked\n");
    let (code, _, complaint) = mock.run(&["lease", "revoke", "7bad"]);
    assert!(code == 1 && complaint.contains("etcdserver: requested lease not found"), "{complaint}");
    assert_eq!(mock.ok(&["lease", "timetolive", "7bad"]), "lease 0000000000007bad already expired\n");
    assert_eq!(mock.run(&["lease", "keep-alive", "7bad", "--once"]).0, 1);
}

#[test]
fn status_is_for_people_and_for_grep() {
    let mock = Mock::start();
    let status = mock.ok(&["status"]);
    for line in ["leader: 1", "raft_index: 100", "raft_term: 7", "member: 2 voter 127.0.0.2:2380 lag=- gossip=-"] {
        assert!(status.lines().any(|found| found == line), "{line} in {status}");
    }
    mock.node.no_leader.store(true, SeqCst);
    assert!(mock.ok(&["status"]).starts_with("leader: none\n"));
    assert!(mock.ok(&["member-list"]).starts_with("1, voter, node-1, 127.0.0.1:2380, "));
    let (code, _, complaint) = mock.run(&["status", "--cluster"]);
    assert!(code == 4 && complaint.contains("quorum lost: 1 of 3 voters answer"), "{complaint}");
    let json = mock.ok(&["status", "-o", "json"]);
    assert!(json.starts_with("[{") && json.contains("\"raft_index\":100"), "{json}");
}

#[test]
fn members_come_and_go() {
    let mock = Mock::start();
    let added = mock.ok(&["member-add", "--node-id", "4", "--peer-url", "10.0.0.4:2380"]);
    assert!(added.starts_with("node 4 added as learner; it becomes a voter"), "{added}");
    assert_eq!(mock.ok(&["member-promote", "--node-id", "4"]), "node 4 is a voter\n");
    assert_eq!(mock.ok(&["member-promote", "--node-id", "4"]), "the member is a voter already\n");
    assert_eq!(mock.ok(&["member-remove", "--node-id", "4"]), "node 4 removed\n");
    assert_eq!(mock.run(&["member-promote", "--node-id", "4"]).0, 1);
    let (code, _, complaint) = mock.run(&["member-add", "--peer-url", "nonsense"]);
    assert!(code == 2 && complaint.contains("`nonsense` is no peer address"), "{complaint}");
    mock.node.no_leader.store(true, SeqCst);
    let (code, _, complaint) = mock.run(&["member-add", "--node-id", "5", "--peer-url", "h:1"]);
    assert_eq!(code, 4);
    assert!(complaint.contains("no leader elected") && complaint.contains("recover --unsafe"), "{complaint}");
}

#[test]
fn maintenance() {
    let mock = Mock::start();
    mock.ok(&["put", "a", "1"]);
    assert_eq!(mock.ok(&["compact", "1"]), "compacted revision 1\n");
    assert!(mock.run(&["compact", "9"]).2.contains("required revision is a future revision"));
    assert_eq!(mock.ok(&["move-leader", "2"]), "leadership moved to node 2\n");
    assert_eq!(mock.run(&["move-leader", "9"]).0, 1);
    assert_eq!(mock.ok(&["alarm", "list"]), "memberID:2 alarm:NOSPACE\n");
    assert!(mock.ok(&["defrag"]).contains("in the background"));
    assert_eq!(mock.ok(&["hashkv"]), format!("{}, 43981, 1\n", mock.endpoint));
    assert!(mock.ok(&["completion", "bash"]).contains("chainfire-client"));
}

/// The stream of a store with one live key, and its digest.
fn snapshot_bytes() -> Vec<u8> {
    let mut writer = Writer::default();
    let mut data = Vec::new();
    let header = Header { raft_index: 70, raft_term: 3, hash: 0xabc, revision: 42, ..Header::default() };
    let record = KeyValue { key: "k".into(), create_revision: 42, mod_revision: 42, version: 1, ..Default::default() };
    writer.put_pair(&mut data, 0, b"k", &record.encode_to_vec());
    writer.put_pair(&mut data, 3, b"b", &1u32.to_le_bytes());
    let mark = [header.raft_index, header.raft_term, header.hash, 42].map(u64::to_le_bytes).concat();
    writer.put_pair(&mut data, 3, b"m", &[&[2], &mark[..]].concat());
    let mut bytes = [writer.header(&header), writer.data(&data), writer.trailer()].concat();
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    bytes
}

#[test]
fn snapshots_are_saved_checked_and_staged() {
    let mock = Mock::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    *mock.node.snapshot.lock().unwrap() = snapshot_bytes();
    for name in ["a.db", "a.tar.gz"] {
        let saved = mock.ok(&["snapshot", "save", &path(name)]);
        assert!(saved.starts_with("Snapshot saved at "), "{saved}");
        let status = mock.ok(&["snapshot", "status", &path(name)]);
        let bytes = std::fs::metadata(path(name)).unwrap().len();
        assert!(status.contains(", 42, 1, ") && bytes > 0, "{status}");
        let verified = mock.ok(&["snapshot", "verify", &path(name)]);
        assert!(verified.contains("intact, full, revision 42, 1 keys"), "{verified}");
        let data = path(&format!("{name}-data"));
        let restored = mock.ok(&["snapshot", "restore", &path(name), "--data-dir", &data]);
        assert!(restored.starts_with("1 keys at revision 42 are ready in "), "{restored}");
        let staged = std::fs::read(format!("{data}/restore.snapshot")).unwrap();
        assert_eq!(staged, snapshot_bytes()[..snapshot_bytes().len() - 32]);
        let (code, _, complaint) = mock.run(&["snapshot", "restore", &path(name), "--data-dir", &data]);
        assert!(code == 6 && complaint.contains("is not empty; nothing was changed"), "{complaint}");
    }
    assert_eq!(std::fs::read(path("a.db")).unwrap(), snapshot_bytes());

    let mut damaged = snapshot_bytes();
    damaged[80] ^= 1;
    std::fs::write(path("bad.db"), &damaged).unwrap();
    let mut archive = std::fs::read(path("a.tar.gz")).unwrap();
    let middle = archive.len() / 2;
    archive[middle] ^= 1;
    std::fs::write(path("bad.tar.gz"), &archive).unwrap();
    for bad in ["bad.db", "bad.tar.gz"] {
        assert_eq!(mock.run(&["snapshot", "status", &path(bad)]).0, 6);
        let (code, said, complaint) = mock.run(&["snapshot", "verify", &path(bad), &path("a.db")]);
        assert!(code == 6 && said.contains("NOT INTACT") && said.contains("a.db: intact"), "{said}{complaint}");
        assert_eq!(mock.run(&["snapshot", "restore", &path(bad), "--data-dir", &path("other")]).0, 6);
        assert!(!folder.path().join("other").exists(), "nothing is touched");
    }
    *mock.node.snapshot.lock().unwrap() = damaged;
    for name in ["b.db", "b.tar.gz"] {
        let (code, _, complaint) = mock.run(&["snapshot", "save", &path(name)]);
        assert!(code == 6 && complaint.contains("damaged or cut short; nothing was saved"), "{complaint}");
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let expected = ["a.db", "a.db-data", "a.tar.gz", "a.tar.gz-data", "bad.db", "bad.tar.gz"];
    assert_eq!(names, expected, "no drafts are left");
    let (code, ..) = mock.run(&["snapshot", "save", "--incremental", "--since", &path("a.db"), &path("c.tar.gz")]);
    assert_eq!(code, 2, "an incremental backup does not bear the name of a full one");
    assert_eq!(mock.run(&["snapshot", "save"]).0, 2);
}

#[test]
fn backups_are_made_in_rounds() {
    let mock = Mock::start();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("backups");
    let (dir_text, figures) = (dir.to_str().unwrap(), folder.path().join("chainfire_backup.prom"));
    let run = ["snapshot", "run", "--dir", dir_text, "--keep", "2", "--textfile", figures.to_str().unwrap()];
    *mock.node.snapshot.lock().unwrap() = snapshot_bytes();
    let kept = || {
        let mut names: Vec<String> =
            std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".tar.gz"));
        names.sort();
        names
    };
    std::fs::create_dir(&dir).unwrap();
    let old = ["chainfire-20200101T000000Z-rev7.tar.gz", "chainfire-20210101T000000Z-rev8.tar.gz"];
    old.iter().for_each(|name| std::fs::write(dir.join(name), "whatever").unwrap());
    std::fs::write(dir.join("mine.tar.gz"), "precious").unwrap();
    let said = mock.ok(&run);
    assert!(said.contains("Deleted ") && said.contains(old[0]) && !said.contains(old[1]), "{said}");
    assert!(kept().len() == 3 && kept().contains(&old[1].to_owned()) && kept().contains(&"mine.tar.gz".to_owned()));
    let told = std::fs::read_to_string(&figures).unwrap();
    assert!(told.contains("chainfire_backup_last_attempt_succeeded{kind=\"full\"} 1"), "{told}");
    assert!(told.contains("chainfire_backup_last_revision{kind=\"full\"} 42"), "{told}");
    // A round that fails deletes nothing, and says so in the figures.
    mock.node.snapshot.lock().unwrap()[80] ^= 1;
    let before = kept();
    assert_eq!(mock.run(&run).0, 6);
    assert_eq!(kept(), before);
    let told = std::fs::read_to_string(&figures).unwrap();
    assert!(told.contains("chainfire_backup_last_attempt_succeeded{kind=\"full\"} 0"), "{told}");
    assert!(told.contains("chainfire_backup_last_revision{kind=\"full\"} 42"), "{told}");
}

#[test]
fn failures_say_what_to_do() {
    let mock = Mock::start();
    let (code, _, complaint) = run(&["--endpoint", "127.0.0.1:1", "status"], &[], "");
    assert_eq!(code, 3);
    assert!(
        complaint.starts_with("Error: http://127.0.0.1:1: connection refused (is a server running there?"),
        "{complaint}"
    );
    assert_eq!(complaint.lines().count(), 1);
    // An endpoint that is down is passed over; variables name endpoints too, etcdctl's as well.
    let both = format!("127.0.0.1:1,{}", mock.endpoint);
    for variable in ["CHAINFIRE_ENDPOINTS", "ETCDCTL_ENDPOINTS"] {
        assert_eq!(run(&["put", "a", "b"], &[(variable, &both)], "").1, "OK\n", "{variable}");
    }
    mock.node.no_leader.store(true, SeqCst);
    let (code, _, complaint) = mock.run(&["put", "a", "b"]);
    assert!(code == 4 && complaint.contains("no leader elected"), "{complaint}");
    mock.node.no_leader.store(false, SeqCst);
    mock.node.hangs.store(true, SeqCst);
    let begun = Instant::now();
    let (code, _, complaint) = mock.run(&["get", "a", "--timeout", "300ms"]);
    assert!(code == 5 && complaint.contains("context deadline exceeded"), "{complaint}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(run(&["put"], &[], "").0, 2);
    assert_eq!(mock.run(&["get"]).0, 2);
}
