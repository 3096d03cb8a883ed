//! Debian's etcdctl, which we did not write, against our server: a golden script of what it prints, and what cannot be
//! written down because it differs from run to run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, command, is_etcd};
use crate::tell::skipped;

const PATIENCE: Duration = Duration::from_secs(20);
/// A watch that has told everything is silent for this long.
const SILENCE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_prints_what_it_prints_with_etcd() {
    if !is_installed() {
        return skipped("etcdctl", "it is not installed (Debian's package etcd-client)");
    }
    let cluster = Cluster::start(1).await;
    let golden = base::crate_folder!().join("tests/processes/etcdctl.golden");
    let script = fs::read_to_string(&golden).unwrap();
    let mut names = Names {
        address: cluster.nodes[0].address.to_string(),
        member: format!("{:x}", cluster.client(0).members().await.unwrap()[0].id),
        lease: String::new(),
    };
    let mut told = String::new();
    for part in parse(&script) {
        told += &part.text();
        if let Part::Command { words, input, .. } = part {
            let words: Vec<String> = words.iter().map(|word| names.real(word)).collect();
            let output = run(&cluster.endpoint(0), &words, &input);
            names.learn(&output);
            told += &names.golden(&output);
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&golden, &told).unwrap();
    }
    let different = told.lines().zip(script.lines()).enumerate().find(|(_, (now, golden))| now != golden);
    if let Some((number, (now, golden))) = different {
        panic!("etcdctl.golden, line {}: etcdctl printed {now:?} instead of {golden:?}; in full:\n{told}", number + 1);
    }
    assert_eq!(told.lines().count(), script.lines().count(), "etcdctl.golden is of another length than:\n{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_sees_a_cluster_of_three() {
    if !is_installed() {
        return skipped("etcdctl", "it is not installed (Debian's package etcd-client)");
    }
    let cluster = Cluster::start(3).await;
    let all = cluster.endpoints().join(",");
    let ask = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        run(&all, &words, "")
    };
    for number in 0..50 {
        assert_eq!(ask(&["put", &format!("key-{number:02}"), "value"]), "OK\n");
    }
    let keys = ask(&["get", "--prefix", "key-", "--keys-only"]);
    assert_eq!(keys.lines().filter(|line| !line.is_empty()).count(), 50);

    let health = ask(&["endpoint", "health"]);
    assert_eq!(health.matches("is healthy: successfully committed proposal").count(), 3, "{health}");
    let hashes = ask(&["endpoint", "hashkv"]);
    let mut hashes: Vec<&str> = hashes.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "replicas differ: {hashes:?}");

    let status = ask(&["endpoint", "status", "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let nodes = status.as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    let leader = nodes[0]["Status"]["leader"].as_u64().unwrap();
    for node in nodes {
        let status = &node["Status"];
        assert_eq!(status["leader"].as_u64(), Some(leader));
        assert_eq!(status["header"]["revision"].as_i64(), Some(51));
        assert!(status["raftIndex"].as_u64() >= Some(50) && status["raftTerm"].as_u64() >= Some(1), "{status}");
        assert!(is_etcd() || status["version"] == "3.7.0", "{status}");
    }

    // Only the leader's endpoint takes it in etcd's client.
    let at_leader = nodes.iter().find(|node| node["Status"]["header"]["member_id"].as_u64() == Some(leader)).unwrap();
    let other = nodes.iter().find_map(|node| node["Status"]["header"]["member_id"].as_u64().filter(|id| *id != leader));
    let words = ["move-leader".to_owned(), format!("{:x}", other.unwrap())];
    let moved = run(at_leader["Endpoint"].as_str().unwrap(), &words, "");
    assert_eq!(moved, format!("Leadership transferred from {leader:x} to {:x}\n", other.unwrap()));

    let file = cluster.folder().join("snapshot.db");
    let words = ["snapshot".to_owned(), "save".to_owned(), file.display().to_string()];
    let saved = run(&cluster.endpoint(1), &words, "");
    assert!(saved.contains("Snapshot saved at"), "{saved}");
    let bytes = fs::metadata(&file).unwrap().len();
    assert_eq!(bytes % 512, 32, "{bytes} bytes: clients look for a digest of 32 bytes behind whole pages");

    assert_eq!(ask(&["del", "--prefix", "key-"]), "50\n");
    let finished = ask(&["defrag"]);
    assert_eq!(finished.matches("Finished defragmenting").count(), 3, "{finished}");
}

enum Part {
    /// A comment or an empty line.
    Other(String),
    Command {
        line: String,
        words: Vec<String>,
        input: String,
    },
}

impl Part {
    fn text(&self) -> String {
        match self {
            Part::Other(line) => format!("{line}\n"),
            Part::Command { line, input, .. } => {
                let input: String =
                    input.lines().map(|line| format!("< {line}").trim_end().to_owned() + "\n").collect();
                format!("{line}\n{input}")
            }
        }
    }
}

/// The commands and comments of a golden script, without what was printed.
fn parse(script: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(words) = line.strip_prefix("$ ") {
            let words = words.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
            let mut input = String::new();
            while let Some(line) = lines.next_if(|line| *line == "<" || line.starts_with("< ")) {
                input += line[1..].trim_start();
                input.push('\n');
            }
            parts.push(Part::Command { line: line.to_owned(), words, input });
        } else if line.starts_with("# ") {
            // An empty line ends what was printed before.
            if matches!(parts.last(), Some(Part::Command { .. })) {
                parts.push(Part::Other(String::new()));
            }
            parts.push(Part::Other(line.to_owned()));
        } else if line.is_empty() && matches!(parts.last(), Some(Part::Other(line)) if !line.is_empty()) {
            parts.push(Part::Other(String::new()));
        }
    }
    parts
}

/// What differs between runs, and how the golden script calls it.
struct Names {
    address: String,
    member: String,
    lease: String,
}

impl Names {
    fn real(&self, word: &str) -> String {
        word.replace("<lease>", &self.lease).replace("<member>", &self.member).replace("<address>", &self.address)
    }

    /// `lease 760fa206f639be16 granted with TTL(60s)`
    fn learn(&mut self, output: &str) {
        if let Some((id, _)) =
            output.strip_prefix("lease ").and_then(|rest| rest.split_once(" granted with TTL(60s)\n"))
        {
            self.lease = id.to_owned();
        }
    }

    fn golden(&self, output: &str) -> String {
        let mut text = output.replace(&self.address, "<address>").replace(&self.member, "<member>");
        if !self.lease.is_empty() {
            text = text.replace(&self.lease, "<lease>");
        }
        let lines = text.lines().map(|line| {
            let varies = ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\"", "\"ID\""];
            match line.split_once(" : ") {
                Some((name, _)) if varies.contains(&name) => format!("{name} : <number>\n"),
                _ => {
                    line.replace("remaining(58s)", "remaining(59s)").replace("remaining(60s)", "remaining(59s)") + "\n"
                }
            }
        });
        lines.collect()
    }
}

/// Runs etcdctl; returns what it printed, without its log lines, and its exit code if that is not zero.
fn run(endpoints: &str, words: &[String], input: &str) -> String {
    let mut process = etcdctl(endpoints, words);
    process.stdin.take().expect("piped").write_all(input.as_bytes()).unwrap();
    let (out, error) = (Collected::of(process.stdout.take()), Collected::of(process.stderr.take()));
    let began = Instant::now();
    let watches = words.first().is_some_and(|word| word == "watch");
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status.code().filter(|code| *code != 0);
        }
        if watches && began.elapsed() > Duration::from_secs(1) && out.silent_for() > SILENCE {
            break None;
        }
        if began.elapsed() > PATIENCE {
            process.kill().unwrap();
            panic!("etcdctl {words:?} does not end; so far: {}", out.text());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let _ = process.kill();
    process.wait().unwrap();
    let error: String =
        error.finish().lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n")).collect();
    let code = status.map(|code| format!("[{code}]\n")).unwrap_or_default();
    out.finish() + &error + &code
}

fn etcdctl(endpoints: &str, words: &[String]) -> Child {
    let mut command = command(Path::new("etcdctl"));
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoints}")).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn is_installed() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|path: PathBuf| path.join("etcdctl")).any(|path| path.is_file())
}

/// A pipe that is read by a thread of its own.
struct Collected {
    read: std::sync::Arc<std::sync::Mutex<(Vec<u8>, Instant)>>,
    thread: std::thread::JoinHandle<()>,
}

impl Collected {
    fn of(pipe: Option<impl std::io::Read + Send + 'static>) -> Collected {
        let mut pipe = pipe.expect("piped");
        let read = std::sync::Arc::new(std::sync::Mutex::new((Vec::new(), Instant::now())));
        let shared = read.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let mut read = shared.lock().unwrap();
                read.0.extend_from_slice(&buffer[..count]);
                read.1 = Instant::now();
            }
        });
        Collected { read, thread }
    }

    fn silent_for(&self) -> Duration {
        self.read.lock().unwrap().1.elapsed()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read.lock().unwrap().0).into_owned()
    }

    /// To be called when the process is gone.
    fn finish(self) -> String {
        self.thread.join().unwrap();
        String::from_utf8_lossy(&self.read.lock().unwrap().0).into_owned()
    }
}
