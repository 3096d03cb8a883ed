//! `scripts/generate-dev-certs.sh`, checked with openssl: who is certified for what, by whom, and what a second run keeps.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

const SCRIPT: &str = "../../scripts/generate-dev-certs.sh";

/// Runs the script in a folder and returns what it printed.
fn generate(folder: &Path, options: &[&str]) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        Command::new(base::crate_folder!().join(SCRIPT)).arg(folder).args(options).output().unwrap();
    if status.success() { Ok(String::from_utf8(stdout).unwrap()) } else { Err(String::from_utf8(stderr).unwrap()) }
}

fn openssl(folder: &Path, arguments: &str) -> (bool, String) {
    let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path, suffix: &str) -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(suffix))
        .collect();
    found.sort();
    found
}

#[test]
fn a_ca_and_a_pair_for_each_node_and_for_clients() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = &temporary.path().join("certs");
    let said = generate(folder, &[]).unwrap();
    assert!(
        said.contains("[network.tls]") && said.contains("chainfire-client --endpoint https://node1:2379"),
        "{said}"
    );
    let made = ["chainfire-node-1", "chainfire-node-2", "chainfire-node-3", "client"];
    let also = ["flaredb-node-1", "flaredb-node-2", "flaredb-node-3", "placement-driver-node-1"];
    for name in made.into_iter().chain(also) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        assert_eq!((mode(&certificate), mode(&key)), (0o644, 0o600), "{name}");
        for purpose in if name == "client" { &["sslclient"][..] } else { &["sslclient", "sslserver"] } {
            let (good, said) = openssl(folder, &format!("verify -purpose {purpose} -CAfile ca.crt {name}.crt"));
            assert!(good, "{said}");
        }
        assert_eq!(names(&folder.join(".bundles").join(name), "").len(), 3, "{name}");
    }
    assert!(!openssl(folder, "verify -purpose sslserver -CAfile ca.crt client.crt").0);
    assert_eq!(
        [".", ".ca", ".ca/ca.key", ".bundles"].map(|path| mode(&folder.join(path))),
        [0o755, 0o700, 0o600, 0o700]
    );
    assert_eq!(
        names(&folder.join(".bundles/chainfire-node-2"), ""),
        ["ca.crt", "chainfire-node-2.crt", "chainfire-node-2.key"]
    );
    assert_eq!(names(folder, "").len(), 19, "nothing is left over: {:?}", names(folder, ""));
    // What `scp DIR/*` takes.
    let seen: Vec<_> = names(folder, "").into_iter().filter(|name| !name.starts_with('.')).collect();
    assert!(seen.iter().all(|name| folder.join(name).is_file() && !name.contains("ca.key")), "{seen:?}");

    // The runbook's lines.
    let (_, text) = openssl(folder, "x509 -in chainfire-node-2.crt -noout -text");
    let alternatives =
        "DNS:chainfire-node-2, DNS:node2, DNS:node-2, DNS:localhost, IP Address:127.0.0.2, IP Address:127.0.0.1";
    for wanted in [alternatives, "TLS Web Server Authentication, TLS Web Client Authentication", "CA:FALSE"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(openssl(folder, "x509 -in chainfire-node-1.crt -noout -dates").1.contains("notAfter="));
    let subject = openssl(folder, "x509 -in ca.crt -noout -subject").1;
    let issuer = openssl(folder, "x509 -in chainfire-node-1.crt -noout -issuer").1;
    assert_eq!(subject.trim_start_matches("subject"), issuer.trim_start_matches("issuer"));
}

#[test]
fn a_second_run_keeps_the_ca_and_what_it_was_told() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let told = ["--nodes", "4", "--host", "1=10.0.0.1", "--host=1=db.example", "--client-ca"];
    generate(folder, &told).unwrap();
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let kept = ["ca.crt", ".ca/ca.key", "client-ca.crt", ".ca/client-ca.key"];
    let before = kept.map(read);
    let pair = ["chainfire-node-4.crt", "chainfire-node-4.key", "client.key"].map(read);
    generate(folder, &[]).unwrap();
    assert_eq!(kept.map(read), before);
    assert_ne!(["chainfire-node-4.crt", "chainfire-node-4.key", "client.key"].map(read), pair);
    let (_, names) = openssl(folder, "x509 -in chainfire-node-1.crt -noout -ext subjectAltName");
    assert!(names.contains("IP Address:10.0.0.1, DNS:db.example"), "{names}");
    assert!(openssl(folder, "verify -CAfile client-ca.crt client.crt").0);
    assert!(!openssl(folder, "verify -CAfile ca.crt client.crt").0);
    assert!(folder.join(".bundles/chainfire-node-4/client-ca.crt").exists());

    // Nothing is made with half a CA, and a CA that ends is signed again with its own key.
    // A key that lies among the files is as good.
    fs::rename(folder.join(".ca/ca.key"), folder.join("elsewhere")).unwrap();
    assert!(generate(folder, &[]).unwrap_err().contains("only one of ca.crt and .ca/ca.key"));
    fs::rename(folder.join("elsewhere"), folder.join("ca.key")).unwrap();
    assert!(generate(folder, &["--days", "3650"]).unwrap().contains("renewed: ca.crt"));
    assert_eq!(read(".ca/ca.key"), before[1]);
    assert!(!folder.join("ca.key").exists());

    // A new CA keeps the old one, and certificates of both are good for those who trust both.
    fs::copy(folder.join("chainfire-node-1.crt"), folder.join("old.pem")).unwrap();
    let said = generate(folder, &["--force-ca"]).unwrap();
    assert!(said.contains("ca-both.crt"), "{said}");
    assert_eq!(read(".ca/ca.old.key"), before[1]);
    assert!(!openssl(folder, "verify -CAfile ca.crt old.pem").0);
    assert!(openssl(folder, "verify -CAfile ca-both.crt old.pem chainfire-node-1.crt").0);
}

/// Of nodes that are started with etcd's flags: the number counts alone where there is one, and theirs are drawn.
#[test]
fn certificates_of_hosts_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let names = |kind: &str| openssl(folder, &format!("x509 -in {kind}-node-1.crt -noout -ext subjectAltName")).1;
    generate(folder, &["--host", "1=10.0.0.1"]).unwrap();
    assert!(names("chainfire").contains("DNS:chainfire-node-1,"));
    let said = generate(folder, &["--by-host"]).unwrap();
    assert!(said.contains("--peer-trusted-ca-file=") && !said.contains("[network.tls]"), "{said}");
    // Twice: it is kept.
    for _ in 0..2 {
        let by_host = names("chainfire");
        assert!(!by_host.contains("chainfire-node"), "{by_host}");
        assert!(by_host.contains("DNS:node1,") && by_host.contains("IP Address:10.0.0.1"), "{by_host}");
        assert!(names("flaredb").contains("DNS:flaredb-node-1,"), "stores have numbers");
        generate(folder, &[]).unwrap();
    }
    let said = generate(folder, &["--by-number"]).unwrap();
    assert!(names("chainfire").contains("DNS:chainfire-node-1,") && said.contains("[network.tls]"), "{said}");
}

#[test]
fn days_and_wrong_words() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    generate(folder, &["--days", "0", "--nodes", "1"]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (good, said) = openssl(folder, "verify -CAfile ca.crt chainfire-node-1.crt");
    assert!(!good && said.contains("certificate has expired"), "{said}");
    generate(folder, &[]).unwrap();
    assert!(openssl(folder, "verify -CAfile ca.crt chainfire-node-1.crt").0);
    for wrong in
        [&["--nodes", "0"][..], &["--days", "x"], &["--host", "1"], &["--host", "0=a"], &["--what"], &["again"]]
    {
        let complaint = generate(folder, wrong).unwrap_err();
        assert!(complaint.starts_with("generate-dev-certs: ") && complaint.lines().count() == 1, "{complaint}");
    }
    assert!(generate(folder, &["--help"]).unwrap().starts_with("usage: "));
}
