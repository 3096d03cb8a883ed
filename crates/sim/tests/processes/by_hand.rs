//! `chainfire-client` in an operator's hands, at nodes that run: what it takes along, and what it shows on a terminal.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proto::etcdserverpb as pb;

use crate::client;
use crate::cluster::{Cluster, Options, command, is_etcd, program};
use crate::tell::skipped;

fn client_program() -> PathBuf {
    let client = program().with_file_name("chainfire-client");
    assert!(client.is_file(), "{} is not there: run `make build` first", client.display());
    client
}

/// A bundle is given away: nothing of what the store holds is in it, and no private key, whatever files were named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_holds_no_key_no_value_and_no_private_key() {
    if is_etcd() {
        return skipped("a_bundle", "an etcd has none");
    }
    const KEY: &str = "marked-key-5d1f";
    const VALUE: &str = "marked-value-9c3e";
    let options = Options { tls: true, ..Options::default() };
    let options = options.flag("log-level", "debug").flag("warning-unary-request-duration", "1ms");
    let cluster = Cluster::start_with(1, options).await;
    let client = cluster.client(0);
    client.put(KEY, VALUE).await.unwrap();
    assert_eq!(client.prefix(KEY).await.unwrap().count, 1);
    let no_lease = pb::PutRequest { lease: 4711, ..client::put(KEY, VALUE) };
    client.put_request(no_lease).await.unwrap_err();
    client.delete(KEY).await.unwrap();
    client.put(KEY, VALUE).await.unwrap();

    let archive = cluster.folder().join("bundle.tar.gz");
    let mut bundle = command(&client_program());
    bundle.args(["--endpoint", &cluster.endpoint(0)]);
    for (option, file) in [("--cacert", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")] {
        bundle.arg(option).arg(cluster.pki().path(file));
    }
    bundle.args(["debug", "bundle", "--file"]).arg(&archive).arg("--log").arg(&cluster.nodes[0].log);
    // Not what was meant.
    bundle.arg("--config").arg(cluster.pki().path("n1.key"));
    let output = bundle.output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let folder = cluster.folder().join("unpacked");
    fs::create_dir(&folder).unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&folder).output().unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    let texts: Vec<(PathBuf, String)> = files_below(&folder)
        .into_iter()
        .map(|path| (path.clone(), String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()))
        .collect();
    for told in ["Serving clients", "etcd_server_has_leader 1", "\"health\": \"good\""] {
        assert!(texts.iter().any(|(_, text)| text.contains(told)), "{told} is nowhere: {output:?}");
    }
    for secret in [KEY, VALUE, "PRIVATE KEY"] {
        for (path, text) in &texts {
            assert!(!text.contains(secret), "{secret} is in {}", path.display());
        }
    }
    let key = fs::read_to_string(cluster.pki().path("n1.key")).unwrap();
    let line = key.lines().nth(1).expect("a key has lines");
    assert!(texts.iter().all(|(_, text)| !text.contains(line)), "a line of a private key");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// A bar is for people: on a terminal, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_shows_a_bar_on_a_terminal_alone() {
    if is_etcd() {
        return skipped("a_backup_shows_a_bar", "an etcd has a client of its own");
    }
    const BAR: &str = "saving [";
    let cluster = Cluster::start(1).await;
    for number in 0..3 {
        cluster.client(0).put(&format!("key-{number}"), &"x".repeat(600_000)).await.unwrap();
    }
    let file = cluster.folder().join("backup.db");
    let (client, endpoint) = (client_program(), cluster.endpoint(0));
    let words = ["--endpoint", &endpoint, "snapshot", "save", "--max-rate", "1", file.to_str().unwrap()];
    let plain = command(&client).args(words).stdin(Stdio::null()).output().unwrap();
    assert!(plain.status.success(), "{plain:?}");
    let said = [plain.stdout, plain.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains(BAR), "{}", String::from_utf8_lossy(&said));

    fs::remove_file(&file).unwrap();
    // Who has no terminal makes one.
    let line = format!("stty cols 120 rows 24; {} {}", client.display(), words.join(" "));
    let mut script = command(Path::new("script"));
    script.args(["-q", "-e", "-c", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let shown = match script.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skipped("a_backup_shows_a_bar_on_a_terminal_alone", "this machine has no `script`");
        }
        shown => shown.unwrap(),
    };
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && file.exists(), "{shown:?}");
    assert!(text.contains(BAR) && text.contains(" of "), "{text:?}");
}
