//! What operators look with: the view of the whole cluster, the debug bundle, manual pages.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use crate::mock::tls::Authority;
use crate::mock::{Mock, run};

#[test]
fn the_cluster_as_a_whole() {
    let mock = Mock::start();
    let (code, out, complaint) = mock.run(&["status", "--cluster"]);
    assert_eq!((code, complaint.lines().count()), (4, 1), "{complaint}");
    assert!(complaint.starts_with("Error: quorum lost: 1 of 3 voters answer (start a majority"), "{complaint}");
    let member =
        format!("member: 1 leader {} reachable raft_index=100 raft_term=7 lag=0 gossip=- version=0.1.0", mock.endpoint);
    for line in [
        "health: quorum lost",
        "leader: 1",
        "raft_term: 7",
        "raft_index: 100",
        "quorum: 1 of 3 voters answer, 2 are needed",
        &member,
        "member: 2 voter http://127.0.0.1:1 unreachable lag=- gossip=- reason=connection refused",
        "advice: start a majority of the voters; these do not answer: node 2, node 3. If they are gone for good, stop one \
         that is left and run `chainfire recover --unsafe` on it",
    ] {
        assert!(out.lines().any(|found| found == line), "{line} in {out}");
    }
    let json = mock.run(&["status", "--cluster", "-o", "json"]).1;
    assert!(
        json.contains("\"health\":\"quorum lost\"") && json.contains("\"reason\":\"connection refused\""),
        "{json}"
    );
    let table = mock.run(&["status", "--cluster", "-o", "table"]).1;
    assert!(
        table.contains("REACHABLE") && table.contains("connection refused") && table.contains("advice:"),
        "{table}"
    );
    // Nobody at all.
    let (code, out, complaint) = run(&["--endpoint", "127.0.0.1:1,127.0.0.1:2", "status", "--cluster"], &[], "");
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(complaint.starts_with("Error: http://127.0.0.1:1: connection refused"), "{complaint}");
    // One that hangs is waited for no longer than the time there is, and says so.
    mock.node.hangs.store(true, SeqCst);
    let (code, _, complaint) = mock.run(&["status", "--cluster", "--timeout", "300ms"]);
    assert!(code == 5 && complaint.contains("context deadline exceeded"), "{complaint}");
}

/// All files of an archive, by their names without its folder.
fn unpacked(archive: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(archive).unwrap()));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (folder, name) = path.split_once('/').unwrap();
        assert!(folder.starts_with("chainfire-debug-"), "{folder}");
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name.to_owned(), text)
    });
    files.collect()
}

#[test]
fn a_debug_bundle_holds_what_helps_and_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let ca = Authority::new(folder.path(), "ours");
    ca.certify("node", &["127.0.0.1"], false);
    ca.certify("client", &["client"], false);
    let mock = Mock::start_with(Some(ca.server("node", true)));
    let (root, cert, key) = (ca.file("ca.crt"), ca.file("client.crt"), ca.file("client.key"));
    let flags = ["--cacert", &root, "--cert", &cert, "--key", &key];
    mock.ok(&[&flags[..], &["put", "hidden-name", "hidden-value"]].concat());
    let secret = fs::read_to_string(&key).unwrap();
    fs::write(path("a.log"), format!("INFO x: Slow request, key=hidden-name latency=15ms\n{secret}")).unwrap();
    fs::write(path("a.toml"), "[auth]\nroot_password = \"hidden-word\"\n[raft]\ntick_interval_ms = 50\n").unwrap();
    let bundle = path("b.tar.gz");
    let files = ["--log", &path("a.log"), "--log", &path("none.log"), "--config", &path("a.toml")];
    let said = mock.ok(&[&flags[..], &["debug", "bundle", "-f", &bundle], &files].concat());
    assert!(said.contains("missing: node-2: http://127.0.0.1:1 connection refused\n"), "{said}");
    assert!(said.ends_with(&format!("10 entries in {bundle}\n")), "{said}");
    assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);

    let files = unpacked(Path::new(&bundle));
    for (file, wanted) in [
        ("machine.txt", "kernel: "),
        ("cluster.json", "\"health\": \"quorum lost\""),
        ("node-1/status.json", "\"raft_term\": 7"),
        ("node-1/alarms.json", "NOSPACE"),
        ("node-1/hashkv.json", "43981"),
        ("node-1/metrics.txt", "the page /metrics"),
        ("node-1/health.json", "the page /health"),
        ("node-1/version.json", "the page /version"),
        ("logs/1-a.log", "Slow request, key=[removed] latency=15ms\n[removed]\n"),
        ("config/1-a.toml", "root_password = [removed]\n[raft]\ntick_interval_ms = 50"),
        ("manifest.json", "none.log: No such file or directory"),
        ("manifest.json", "\"client_version\": \"0.1.0\""),
    ] {
        assert!(files[file].contains(wanted), "{wanted} in {file}: {}", files[file]);
    }
    let body = secret.lines().nth(1).unwrap();
    for (file, text) in &files {
        for hidden in ["hidden-name", "hidden-value", "hidden-word", body, "PRIVATE KEY"] {
            assert!(!text.contains(hidden), "{hidden} in {file}");
        }
    }
    // What checks this sees a secret where there is one.
    assert!(fs::read_to_string(path("a.log")).unwrap().contains(body));

    // Unasked it takes what the node on this machine has: the journal, the configuration and its drop-ins.
    let own = folder.path().join("own");
    fs::create_dir_all(own.join("chainfire.toml.d")).unwrap();
    fs::write(own.join("chainfire.toml"), "[raft]\ntick_interval_ms = 70\n").unwrap();
    fs::write(own.join("chainfire.toml.d/10-node.toml"), "token = \"hidden-word\"\nnode_id = 4\n").unwrap();
    fs::write(own.join("chainfire.toml.d/notes.txt"), "hidden-word").unwrap();
    let journalctl = own.join("journalctl");
    fs::write(&journalctl, "#!/bin/sh\necho \"$1\" INFO x: Slow request, key=hidden-name latency=7ms\n").unwrap();
    fs::set_permissions(&journalctl, fs::Permissions::from_mode(0o755)).unwrap();
    let ours = own.join("chainfire.toml").display().to_string();
    let path_variable = [("PATH", own.to_str().unwrap())];
    let unasked = ["--endpoint", "127.0.0.1:1", "debug", "bundle", "-f", &bundle, "--node-config"];
    assert_eq!(run(&[&unasked[..], &[&ours]].concat(), &path_variable, "").0, 0);
    let files = unpacked(Path::new(&bundle));
    assert_eq!(files["logs/journal.log"], "--unit=chainfire INFO x: Slow request, key=[removed] latency=7ms\n");
    assert_eq!(files["config/1-chainfire.toml"], "[raft]\ntick_interval_ms = 70\n");
    assert_eq!(files["config/2-10-node.toml"], "token = [removed]\nnode_id = 4\n");
    assert!(files.values().all(|text| !text.contains("hidden")), "{files:?}");
    // Where there is no node, it says what it looked for.
    let nowhere = [&unasked[..], &["/nowhere/chainfire.toml"]].concat();
    let (code, said, _) = run(&nowhere, &[("PATH", "/nowhere")], "");
    assert!(code == 0 && said.contains("missing: logs/journal.log: journalctl: "), "{said}");
    assert!(said.contains("missing: config/1-chainfire.toml: /nowhere/chainfire.toml: No such file"), "{said}");

    // With nobody to ask there is still an archive; where none can be written, there is nothing.
    let alone = ["--endpoint", "127.0.0.1:1", "debug", "bundle", "-f", &bundle];
    assert_eq!(run(&alone, &[], "").0, 0);
    assert!(unpacked(Path::new(&bundle))["manifest.json"].contains("connection refused"));
    let (code, _, complaint) = mock.run(&["debug", "bundle", "-f", &path("no/where.tar.gz")]);
    assert!(code == 6 && complaint.contains("cannot be made") && complaint.ends_with("code=CF6030\n"), "{complaint}");
    assert!(!Path::new(&format!("{bundle}.draft")).exists());
}

#[test]
fn manual_pages_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    assert_eq!(run(&["man", "--dir", pages.to_str().unwrap()], &[], ""), (0, "".into(), "".into()));
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    assert!(page("chainfire-client.1").contains("CHAINFIRE_ENDPOINTS"));
    assert!(page("chainfire-client-status.1").contains("quorum lost"));
    assert!(page("chainfire-client-debug-bundle.1").contains("\\-\\-log"));
    let (code, main, _) = run(&["man"], &[], "");
    assert!(code == 0 && main.contains(".TH") && main.contains("chainfire\\-client"), "{main}");
    let (code, reference, _) = run(&["man", "--markdown"], &[], "");
    assert!(code == 0 && reference.starts_with("# chainfire-client\n"), "{reference}");
    for wanted in ["## lease grant\n", "| `--cacert FILE` |", "chainfire-client member-add"] {
        assert!(reference.contains(wanted), "{wanted} in {reference}");
    }
    // Where man is installed, it finds nothing to complain of.
    if let Ok(output) = Command::new("man")
        .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
        .arg(pages.join("chainfire-client.1"))
        .output()
    {
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
