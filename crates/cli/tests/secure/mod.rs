//! TLS as the client sees it: with good certificates everything works, and of everything that can be wrong it says what it
//! is, in the runbook's words, with a next step and a code.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::mock::tls::Authority;
use crate::mock::{self, Mock, run};

struct Place {
    folder: tempfile::TempDir,
    ca: Authority,
    other: Authority,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "theirs"));
    for authority in [&ca, &other] {
        authority.certify("node", &["localhost", "127.0.0.1", "chainfire-node-1"], false);
        authority.certify("client", &["client"], false);
    }
    Place { folder, ca, other }
}

/// Runs the client with certificates of a CA.
fn run_as(ca: &Authority, endpoint: &str, arguments: &[&str]) -> (i32, String, String) {
    let (root, cert, key) = (ca.file("ca.crt"), ca.file("client.crt"), ca.file("client.key"));
    let flags = ["--endpoint", endpoint, "--cacert", &root, "--cert", &cert, "--key", &key];
    run(&[&flags, arguments].concat(), &[], "")
}

/// It failed, and this is what it said.
fn complaint((code, _, complaint): (i32, String, String), expected_code: i32) -> String {
    assert_eq!(code, expected_code, "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    complaint
}

#[test]
fn both_sides_show_certificates() {
    let place = place();
    let ca = &place.ca;
    let mock = Mock::start_with(Some(ca.server("node", true)));
    assert_eq!(run_as(ca, &mock.endpoint, &["put", "a", "1"]), (0, "OK\n".into(), "".into()));
    // Without a scheme it is https, once a CA is named; and names other than the address are good too.
    let bare = mock.endpoint.trim_start_matches("https://");
    assert_eq!(run_as(ca, bare, &["get", "a", "--print-value-only"]).1, "1\n");
    let localhost = mock.endpoint.replace("127.0.0.1", "localhost");
    assert_eq!(run_as(ca, &localhost, &["get", "a", "--keys-only"]).1, "a\n");
    assert_eq!(run_as(ca, bare, &["--server-name", "chainfire-node-1", "get", "a", "--keys-only"]).1, "a\n");
    // Streams too, and settings from the environment, ours and etcdctl's.
    assert_eq!(run_as(ca, bare, &["watch", "a", "--rev", "1", "--events", "1"]).0, 1, "compacted, says the mock");
    for prefix in ["CHAINFIRE", "ETCDCTL"] {
        let names = ["ENDPOINTS", "CACERT", "CERT", "KEY"].map(|name| format!("{prefix}_{name}"));
        let values = [mock.endpoint.clone(), ca.file("ca.crt"), ca.file("client.crt"), ca.file("client.key")];
        let environment: Vec<_> = names.iter().map(String::as_str).zip(values.iter().map(String::as_str)).collect();
        assert_eq!(run(&["get", "a", "--keys-only"], &environment, "").1, "a\n", "{prefix}");
    }
    let skip = ["--endpoint", &mock.endpoint, "--insecure-skip-tls-verify", "--cert"];
    let own = [&ca.file("client.crt"), "--key", &ca.file("client.key"), "get", "a", "--keys-only"];
    assert_eq!(run(&[&skip[..], &own].concat(), &[], "").1, "a\n");
}

#[test]
fn a_server_that_we_do_not_trust() {
    let place = place();
    let Place { ca, other, .. } = &place;
    let mock = Mock::start_with(Some(ca.server("node", false)));
    let said = complaint(run_as(other, &mock.endpoint, &["status"]), 3);
    assert!(said.starts_with(&format!("Error: {}: certificate verify failed: unknown CA", mock.endpoint)), "{said}");
    assert!(said.contains("(is --cacert the CA of this cluster") && said.ends_with(" code=CF6001\n"), "{said}");
    let elsewhere = ["status", "--server-name", "chainfire-node-7"];
    let said = complaint(run_as(ca, &mock.endpoint, &elsewhere), 3);
    let names =
        "certificate verify failed: not valid for chainfire-node-7, but for localhost, 127.0.0.1, chainfire-node-1";
    assert!(said.contains(names), "{said}");
    ca.certify("old", &["127.0.0.1"], true);
    let old = Mock::start_with(Some(ca.server("old", false)));
    let said = complaint(run_as(ca, &old.endpoint, &["put", "a", "b"]), 3);
    assert!(said.contains("certificate verify failed: expired on 2020-02-03 00:00 UTC"), "{said}");
}

#[test]
fn a_server_that_does_not_trust_us() {
    let place = place();
    let Place { ca, other, .. } = &place;
    let mock = Mock::start_with(Some(ca.server("node", true)));
    let root = ca.file("ca.crt");
    let status =
        |extra: &[&str]| run(&[&["--endpoint", &mock.endpoint, "--cacert", &root, "status"], extra].concat(), &[], "");
    let said = complaint(status(&[]), 3);
    assert!(said.contains(": tls: certificate required (") && said.ends_with("code=CF6003\n"), "{said}");
    let stranger = ["--cert", &other.file("client.crt"), "--key", &other.file("client.key")];
    let said = complaint(status(&stranger), 3);
    assert!(said.contains(": tls: bad certificate") && said.ends_with("code=CF6002\n"), "{said}");
    ca.certify("old", &["client"], true);
    let said = complaint(status(&["--cert", &ca.file("old.crt"), "--key", &ca.file("old.key")]), 3);
    assert!(said.contains(": tls: bad certificate: expired"), "{said}");
}

#[test]
fn one_side_speaks_tls_and_the_other_does_not() {
    let place = place();
    let ca = &place.ca;
    let (secured, plain) = (Mock::start_with(Some(ca.server("node", true))), Mock::start());
    for command in [&["status"][..], &["put", "a", "b"], &["watch", "a"]] {
        let endpoint = secured.endpoint.replace("https", "http");
        let said = complaint(run_as(ca, &endpoint, command), 3);
        assert!(said.contains(": this port speaks TLS: use https:// (") && said.ends_with("code=CF6004\n"), "{said}");
        let endpoint = plain.endpoint.replace("http", "https");
        let said = complaint(run_as(ca, &endpoint, command), 3);
        assert!(
            said.contains("TLS") && said.contains("http:// in --endpoint") && said.ends_with("code=CF6005\n"),
            "{said}"
        );
    }
}

#[test]
fn files_that_are_not_as_they_should_be() {
    let place = place();
    let Place { folder, ca, other } = &place;
    let (root, cert, key) = (ca.file("ca.crt"), ca.file("client.crt"), ca.file("client.key"));
    let nothing = folder.path().join("nothing").to_str().unwrap().to_owned();
    fs::write(&nothing, "no PEM\n").unwrap();
    let missing = folder.path().join("missing").to_str().unwrap().to_owned();
    let strange = other.file("client.key");
    let (no_key, open) = (ca.file("no.key"), ca.file("open.key"));
    for (file, content, mode) in [(&no_key, &cert, 0o600), (&open, &key, 0o640)] {
        fs::copy(content, file).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let open_says = format!("key file {open} may be read by others (mode 0640): chmod 600 {open}");
    let cases: [(&[&str], &str); 8] = [
        (&["--cacert", &missing], "missing: cannot be read: No such file"),
        (&["--cacert", &nothing], "nothing: there is no certificate in it"),
        (&["--cacert", &root, "--cert", &cert, "--key", &strange], "this key does not belong to the certificate in"),
        (&["--cacert", &root, "--cert", &cert, "--key", &no_key], "no.key: there is no private key in it"),
        (&["--cacert", &root, "--cert", &cert, "--key", &open], &open_says),
        (&["--cacert", &root, "--cert", &cert], "client.crt: a certificate needs its key too"),
        (&["--cacert", &root, "--key", &key], "client.key: a key needs its certificate too"),
        (&["--cacert", &root, "--cert", &key, "--key", &key], "client.key: there is no certificate in it"),
    ];
    for (flags, expected) in cases {
        let said = complaint(run(&[&["--endpoint", "https://127.0.0.1:1", "status"], flags].concat(), &[], ""), 6);
        assert!(said.contains(expected) && said.ends_with("code=CF6010\n"), "{expected} in {said}");
    }
}

#[test]
fn contexts_name_clusters() {
    let place = place();
    let Place { folder, ca, .. } = &place;
    let mock = Mock::start_with(Some(ca.server("node", true)));
    let plain = Mock::start();
    let file = folder.path().join("contexts/clients.toml");
    let environment = [("CHAINFIRE_CLIENT_CONFIG", file.to_str().unwrap())];
    let run = |arguments: &[&str]| run(arguments, &environment, "");
    assert_eq!(run(&["context", "list"]), (0, "".into(), "".into()));
    let (root, cert, key) = (ca.file("ca.crt"), ca.file("client.crt"), ca.file("client.key"));
    let flags = ["--endpoint", &mock.endpoint, "--cacert", &root, "--cert", &cert, "--key", &key];
    assert_eq!(run(&[&["context", "set", "prod"], &flags[..]].concat()).0, 0);
    assert_eq!(run(&["context", "set", "test", "--endpoint", &plain.endpoint]).0, 0);
    assert_eq!(run(&["--context", "prod", "put", "a", "of prod"]).1, "OK\n");
    assert_eq!(run(&["--context", "test", "put", "a", "of test"]).1, "OK\n");
    assert_eq!(run(&["context", "use", "prod"]).0, 0);
    assert_eq!(run(&["get", "a", "--print-value-only"]).1, "of prod\n");
    // A context that was named comes before variables, and they come before the one in use.
    let variable = [environment[0], ("CHAINFIRE_ENDPOINTS", plain.endpoint.as_str())];
    assert_eq!(mock::run(&["get", "a", "--print-value-only"], &variable, "").1, "of test\n");
    assert_eq!(mock::run(&["--context", "prod", "get", "a", "--print-value-only"], &variable, "").1, "of prod\n");
    assert_eq!(run(&["--endpoint", &plain.endpoint, "get", "a", "--print-value-only"]).1, "of test\n");
    assert_eq!(run(&["context", "list"]).1, format!("*prod, {}\ntest, {}\n", mock.endpoint, plain.endpoint));
    let (code, _, said) = run(&["--context", "prd", "status"]);
    assert!(
        code == 2 && said.contains("no context `prd` (known: prod, test;") && said.ends_with("code=CF6020\n"),
        "{said}"
    );
    assert_eq!(run(&["context", "remove", "prod"]).0, 0);
    assert_eq!(run(&["context", "list"]).1, format!("test, {}\n", plain.endpoint));
    fs::write(&file, "current = \"x\"\nnonsense\n").unwrap();
    let (code, _, said) = run(&["status"]);
    assert!(code == 6 && said.contains("clients.toml: line 2") && said.ends_with("code=CF6021\n"), "{said}");
}
