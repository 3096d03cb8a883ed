//! What cannot start says why in one line that ends with a code, ends itself with an exit code that is not zero, and leaves
//! everything as it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{CLIENT_PORT, Cluster, GOSSIP_PORT, Options, PEER_PORT, command, is_etcd, program};
use crate::tell::skipped;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named_with_its_holder() {
    if is_etcd() {
        return skipped("a_port_in_use", "etcd does not name the holder");
    }
    for port in [CLIENT_PORT, PEER_PORT, GOSSIP_PORT] {
        let cluster = Cluster::new(1, Options::default());
        let held = format!("{}:{port}", cluster.nodes[0].address);
        let _held = TcpListener::bind(&held).unwrap();
        let mut command = cluster.command(0);
        // A gossip port that nobody has asked for is done without.
        if port == GOSSIP_PORT {
            command.arg(format!("--gossip-addr={held}"));
        }
        let line = refusal(command, &cluster.nodes[0].data_dir, "CF7011");
        assert!(line.contains(&held), "the line names {held}: {line}");
        let own = std::process::id().to_string();
        assert!(line.contains(&own), "the line names the holder, process {own}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_that_cannot_be_used_are_refused() {
    if is_etcd() {
        return skipped("folders_that_cannot_be_used", "etcd takes any folder");
    }
    let mut cluster = Cluster::new(1, Options::default());
    let root = cluster.folder().to_owned();

    let foreign = root.join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "precious").unwrap();
    cluster.nodes[0].data_dir = foreign.clone();
    let line = refusal(cluster.command(0), &foreign, "CF7013");
    assert!(line.contains("not ours") && line.contains("foreign"), "{line}");

    let file = root.join("a-file");
    fs::write(&file, "content").unwrap();
    for path in [file.clone(), file.join("below")] {
        cluster.nodes[0].data_dir = path.clone();
        let line = refusal(cluster.command(0), &file, "CF7013");
        assert!(line.contains("a-file"), "{line}");
    }

    cluster.nodes[0].data_dir = PathBuf::from("/proc/processes-data");
    let line = refusal(cluster.command(0), Path::new("/proc/processes-data"), "CF7013");
    assert!(line.contains("/proc/processes-data"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_others_are_refused() {
    if is_etcd() {
        return skipped("folders_of_others", "etcd does not look");
    }
    let mut cluster = Cluster::start(3).await;
    cluster.client(0).put("key", "value").await.unwrap();
    // In use: the same folder, other addresses.
    let second = cluster.add_node("new");
    let first = cluster.nodes[0].data_dir.clone();
    let own_folder = std::mem::replace(&mut cluster.nodes[second].data_dir, first.clone());
    let line = refusal_in_use(cluster.command(second), "CF7013");
    assert!(line.contains("in use by another process"), "{line}");
    cluster.nodes[second].data_dir = own_folder;

    // Of another member: node 2 is started on node 1's folder.
    cluster.kill(0);
    cluster.kill(1);
    let other = std::mem::replace(&mut cluster.nodes[1].data_dir, first.clone());
    let line = refusal(cluster.command(1), &first, "CF7013");
    assert!(line.contains("belongs to node"), "{line}");

    // Nothing was harmed by any of this.
    cluster.nodes[1].data_dir = other;
    cluster.spawn(0);
    cluster.spawn(1);
    for index in 0..3 {
        cluster.wait_until_serving(index).await;
    }
    assert_eq!(cluster.client(1).get("key").await.unwrap().count, 1);
}

#[test]
fn flags_and_files_that_are_not_understood_are_refused() {
    if is_etcd() {
        return skipped("flags_and_files", "etcd words it otherwise");
    }
    let cluster = Cluster::new(1, Options::default());
    let folder = cluster.folder().to_owned();
    let data = folder.join("data");

    let mut unknown = command(&cluster.program());
    unknown.args(["--name=n1", "--election-timeuot=1000"]).arg(format!("--data-dir={}", data.display()));
    let line = refusal(unknown, &data, "CF7010");
    assert!(line.contains("--election-timeuot"), "{line}");

    let file = folder.join("chainfire.toml");
    fs::write(&file, "[cluster]\nnode_id = 1\n\n[storage]\nwrite_bufer_size = 67108864\n").unwrap();
    let mut wrong_key = command(&program());
    wrong_key.args(["--config".as_ref(), file.as_os_str(), "--data-dir".as_ref(), data.as_os_str()]);
    let line = refusal(wrong_key, &data, "CF7010");
    for word in ["chainfire.toml:5", "write_bufer_size", "write_buffer_size"] {
        assert!(line.contains(word), "the line has {word}: {line}");
    }

    fs::write(&file, "[raft]\ntick_interval_ms = \"often\"\n").unwrap();
    let mut wrong_value = command(&program());
    wrong_value.args(["--config".as_ref(), file.as_os_str(), "--data-dir".as_ref(), data.as_os_str()]);
    let line = refusal(wrong_value, &data, "CF7010");
    for word in ["chainfire.toml:2", "tick_interval_ms", "often"] {
        assert!(line.contains(word), "the line has {word}: {line}");
    }
}

#[test]
fn certificates_that_cannot_be_used_are_refused() {
    if is_etcd() {
        return skipped("certificates_that_cannot_be_used", "etcd words it otherwise");
    }
    let cluster = Cluster::new(1, Options { tls: true, ..Options::default() });
    let certificate = cluster.pki().path("n1.crt");
    fs::write(&certificate, "no certificate").unwrap();
    let line = refusal(cluster.command(0), &cluster.nodes[0].data_dir, "CF7012");
    assert!(line.contains(&certificate.display().to_string()), "{line}");
}

/// Whoever corrects what was refused finds the folder as it was; and a check of the configuration would have said the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_the_certificate_does_not_name_is_refused_and_the_right_one_starts() {
    if is_etcd() {
        return skipped("a_number_that_the_certificate_does_not_name", "an etcd has no numbers of this kind");
    }
    let mut cluster = Cluster::new(1, Options { tls: true, ..Options::default() });
    let (address, data) = (cluster.nodes[0].address, cluster.nodes[0].data_dir.clone());
    cluster.pki().issue("n1", &["chainfire-node-1", &address.to_string()]);
    let file = |name: &str| cluster.pki().path(name).display().to_string();
    let (cert, key, ca) = (file("n1.crt"), file("n1.key"), file("ca.crt"));
    let member = |number: u64| {
        let mut member = command(&program());
        member.arg("--config=/dev/null").arg(format!("--data-dir={}", data.display()));
        member.args([format!("--api-addr={address}:{CLIENT_PORT}"), format!("--raft-addr={address}:{PEER_PORT}")]);
        member.args([format!("--tls-cert-file={cert}"), format!("--tls-key-file={key}")]);
        member.args([format!("--tls-ca-file={ca}"), format!("--node-id={number}")]);
        member
    };
    let refused = |number: u64, words: &str| {
        let line = refusal(member(number), &data, "CF7012");
        assert!(line.contains(words), "{line}");
        let mut checked = member(number);
        checked.arg("--check-config");
        assert_eq!(refusal(checked, &data, "CF7012"), line);
    };
    refused(2, "and this is chainfire-node-2");
    let may_read = |mode: u32| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    may_read(0o644);
    refused(1, "may be read by others");
    may_read(0o600);
    let checked = member(1).arg("--check-config").output().unwrap();
    assert!(checked.status.success() && !data.exists(), "{}", String::from_utf8_lossy(&checked.stderr));

    let right = member(1);
    cluster.spawn_as(0, right);
    cluster.wait_until_serving(0).await;
    // Whose the folder is goes before whose the certificate is.
    cluster.kill(0);
    let line = refusal(member(2), &data, "CF7013");
    assert!(line.contains("belongs to node 1"), "{line}");
}

#[test]
fn the_version_is_printed_as_etcd_prints_it() {
    let cluster = Cluster::new(1, Options::default());
    let output = command(&cluster.program()).arg("--version").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("etcd Version: 3."), "{first}");
    assert!(is_etcd() || first == "etcd Version: 3.7.0", "{first}");
}

/// Starts what must not start; returns the one line that it says, and sees to it that nothing in `folder` changed.
fn refusal(command: Command, folder: &Path, code: &str) -> String {
    let before = content(folder);
    let line = refusal_in_use(command, code);
    assert_eq!(content(folder), before, "{} was changed", folder.display());
    line
}

fn refusal_in_use(mut command: Command, code: &str) -> String {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it started all the same");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).unwrap();
    child.stderr.take().expect("piped").read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line says why:\n{said}");
    assert!(is_etcd() || lines[0].ends_with(&format!(" code={code}")), "its last word is {code}: {said}");
    lines[0].to_owned()
}

/// All files below a path with their content; empty when there is nothing.
fn content(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            found.insert(path, Vec::new());
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}
