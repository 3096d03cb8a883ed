//! TLS/mTLS Issues. Clients are under mTLS too here, as `api = "mutual"` wants it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::book::{fill, tls};
use crate::settings::{CERTIFICATES, MAKE_CERTIFICATES, Settings, repository};
use crate::world::World;

const NODES: [usize; 3] = [1, 2, 3];

#[test]
fn certificates_are_looked_at_and_a_connection_is_tried() {
    let world = under_mtls();
    world.operator(tls::FILES).succeeds().shows("ca.crt").shows("chainfire-node-1.crt").shows("chainfire-node-1.key");
    world.operator(tls::VALIDITY).succeeds().shows("notBefore=").shows("notAfter=");
    let names = world.operator(tls::ISSUER).succeeds();
    let (subject, issuer) = names.out.split_once('\n').expect("two lines");
    assert_eq!(subject.strip_prefix("subject="), issuer.trim().strip_prefix("issuer="), "{names}");
    let connection = fill(tls::CONNECTION, &[("NODE_IP", world.address(1))]);
    world.operator(&connection).shows("Verify return code: 0 (ok)").shows("TLSv1.3");
    world.operator(&format!("{connection} -tls1_2")).shows("Verify return code: 0 (ok)").shows("TLSv1.2");

    // 2379 without a certificate, and without TLS.
    let bare = format!("curl -sS --cacert {CERTIFICATES}/ca.crt https://node1:2379/health");
    world.operator(&bare).fails();
    world.until_said(1, "certificate verify failed: the other side showed no certificate");
    world
        .operator(&format!("{bare} --cert {CERTIFICATES}/client.crt --key {CERTIFICATES}/client.key"))
        .succeeds()
        .shows("true");
    world.operator("curl -sS http://node1:2379/health").shows("https://");
    world.operator("chainfire-client --endpoint http://node1:2379 status").fails().shows("https://");
    ask(&world, 1, "put key value").succeeds();
    ask(&world, 3, "get key").succeeds().shows("value");
}

#[test]
fn every_port_speaks_both_versions_of_tls() {
    let world = under_mtls();
    for port in [2379, 2380, 2381] {
        let at = format!("{}:{port}", world.address(1));
        let connection = fill(tls::CONNECTION, &[("NODE_IP:2379", &at)]);
        for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let said = world.operator(&format!("{connection} {flag}"));
            said.shows("Verify return code: 0 (ok)").shows(&format!("New, {version}, Cipher is "));
        }
    }
}

/// `insecure = true` is allowed, and not forgotten.
#[test]
fn serving_clients_off_loopback_without_tls_is_warned_of_at_every_start() {
    let world = World::found(1);
    let address = world.address(1);
    let warning = format!("WARN chainfire_config: clients are served at {address}:2379 without TLS: whoever ");
    let warnings = || world.journal(1).matches(&warning).count();
    assert_eq!(warnings(), 1, "{}", world.journal(1));
    world.on(1, "systemctl restart chainfire").succeeds();
    world.until_serving(&[1]);
    assert_eq!(warnings(), 2, "{}", world.journal(1));
}

#[test]
fn certificates_that_expire_soon_are_told_of_in_time() {
    const DAYS: u64 = 10;
    let world = under_mtls();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    make_certificates(&world, CERTIFICATES, &format!("--days {DAYS}"));
    // Nobody tells the nodes: they look by themselves.
    NODES.iter().for_each(|node| world.bring_certificates(*node));
    for node in NODES {
        let file = format!("{CERTIFICATES}/chainfire-node-{node}.crt");
        let words = "WARN chainfire_network: A certificate expires soon: replace the file, no restart is needed, file=";
        world.until_said(node, &format!("{words}{file} expires_in_days="));
        let page = world.operator(&format!(
            "curl -sS --fail --cacert {CERTIFICATES}/ca.crt --cert {CERTIFICATES}/client.crt \
             --key {CERTIFICATES}/client.key https://node{node}:2379/metrics"
        ));
        let series = "chainfire_tls_expiry_timestamp_seconds{file=\"cert\"} ";
        let expires_s: u64 = page.out.lines().find_map(|line| line.strip_prefix(series)?.parse().ok()).expect(series);
        let expected = now + Duration::from_secs(DAYS * 86_400);
        assert!(expires_s.abs_diff(expected.as_secs()) < 600, "{expires_s} instead of about {}", expected.as_secs());
    }
    serves(&world);
}

#[test]
fn expired_certificates_are_named_and_regenerated() {
    let world = under_mtls();
    make_certificates(&world, CERTIFICATES, "--days 0");
    for node in NODES {
        world.stop(node);
        world.bring_certificates(node);
    }
    NODES.iter().for_each(|node| drop(world.on(*node, "systemctl start chainfire")));
    world.until("a node refuses another one", || {
        NODES.iter().any(|node| world.journal(*node).contains("certificate verify failed: expired on "))
    });
    for node in NODES {
        world.until_said(node, "no restart is needed, expired_days_ago=0 code=CF3102");
    }
    world.operator(tls::VALIDITY).succeeds().shows("notAfter=");
    // A client refuses the API's port in the same words.
    ask(&world, 1, "status").fails().shows("certificate verify failed: expired");

    world.operator(&fill(tls::REGENERATE, &[("/path/to/centra-cloud", &checkout())])).succeeds();
    serves(&world);
    have_the_certificates_of(&world, CERTIFICATES);
}

#[test]
fn nodes_of_two_cas_do_not_hear_each_other_until_all_have_the_same() {
    let world = under_mtls();
    let other = format!("{}/other-ca", world.folder().display());
    make_certificates(&world, &other, "");
    let odd = leader(&world, 1);
    world.operator(&format!("cd {other} && scp ca.crt chainfire-node-{odd}.* node{odd}:{CERTIFICATES}/")).succeeds();
    world.on(odd, "systemctl restart chainfire");
    // Whoever connects refuses, and whoever was called hears of it; who calls whom is up to who has something to say.
    let words = ["certificate verify failed: unknown CA", "tls: bad certificate: unknown CA"];
    for node in NODES {
        world.until(&format!("node{node} says why it does not hear one"), || {
            let said = world.journal(node);
            words.iter().any(|words| said.contains(words))
        });
    }
    for words in words {
        let said = || NODES.iter().any(|node| world.journal(*node).contains(words));
        world.until(&format!("one says `{words}`"), said);
    }
    let shown = world.on(odd, tls::ISSUER.lines().next().expect("the first of two")).succeeds();
    assert!(shown.out.starts_with("subject="), "{shown}");

    let new = format!("{}/new-certs", world.folder().display());
    world.operator(&format!("cd {}\n{}", checkout(), fill(tls::SAME_CA, &[("/tmp/new-certs", &new)]))).succeeds();
    world.operator(&format!("cp {new}/* {CERTIFICATES}/")).succeeds();
    serves(&world);
    have_the_certificates_of(&world, &new);
}

#[test]
fn a_key_that_others_may_read_is_refused_until_its_mode_is_right() {
    let world = under_mtls();
    let _ = world.on(2, &format!("chmod 0644 {CERTIFICATES}/chainfire-node-2.key && systemctl restart chainfire"));
    world.until_said(2, "may be read by others (mode 0644): chmod 600 /etc/centra-cloud/certs/chainfire-node-2.key");
    assert!(!ask(&world, 2, "status").is_success(), "it does not run");
    world.on(2, &format!("chown root:root {CERTIFICATES}/*")).succeeds();
    world.on(2, tls::PERMISSIONS).succeeds();
    serves(&world);
}

#[test]
fn a_certificate_of_another_member_is_refused() {
    let world = under_mtls();
    world.stop(3);
    // Node 2's, under node 3's name.
    for kind in ["crt", "key"] {
        let from = format!("{CERTIFICATES}/chainfire-node-2.{kind}");
        let to = format!("{CERTIFICATES}/chainfire-node-3.{kind}");
        world.operator(&format!("ssh node2 \"cat {from}\" | ssh node3 \"cat > {to}\"")).succeeds();
    }
    let _ = world.on(3, "systemctl start chainfire");
    world.until_said(3, "names neither chainfire-node-3 nor node3");
    let leader = leader(&world, 1);
    let status = ask(&world, leader, "status").succeeds();
    assert!(status.number("raft_index") > 0, "the others go on");
    world.bring_certificates(3);
    let _ = world.on(3, "systemctl restart chainfire");
    serves(&world);
}

fn under_mtls() -> World {
    let world = World::new(3);
    let settings = Settings { api: "mutual", ..Settings::founder(&world) };
    world.certify();
    NODES.iter().for_each(|node| world.set_up(*node, &settings));
    world.start_all();
    serves(&world);
    world
}

/// Each node answers a linearizable read, under mTLS.
fn serves(world: &World) {
    for node in NODES {
        world.until(&format!("node{node} serves"), || ask(world, node, "get some-key").is_success());
    }
}

/// The nodes have what lies in the operator's folder, but for the keys that sign.
fn have_the_certificates_of(world: &World, folder: &str) {
    let made = world.operator(&format!("cd {folder} && sha256sum *")).succeeds();
    let signing = world.operator(&format!("cat {folder}/.ca/ca.key")).succeeds();
    for node in NODES {
        assert_eq!(world.on(node, &format!("cd {CERTIFICATES} && sha256sum *")).succeeds().out, made.out);
        world
            .on(node, &format!("cat {CERTIFICATES}/* && ls -A {CERTIFICATES}"))
            .succeeds()
            .hides(&signing.out)
            .hides(".ca");
    }
}

/// As a node knows it.
fn leader(world: &World, through: usize) -> usize {
    world.until_some("a leader", || ask(world, through, "status").field("leader")?.parse().ok())
}

/// A command of chainfire-client with the client's certificate.
fn ask(world: &World, node: usize, command: &str) -> crate::said::Said {
    world.operator(&format!(
        "chainfire-client --endpoint https://node{node}:2379 --cacert {CERTIFICATES}/ca.crt --cert {CERTIFICATES}/client.crt \
         --key {CERTIFICATES}/client.key {command}"
    ))
}

fn make_certificates(world: &World, folder: &str, options: &str) {
    let script = repository().join(MAKE_CERTIFICATES);
    let hosts: String = NODES.iter().map(|node| format!(" --host {node}={}", world.address(*node))).collect();
    world.operator(&format!("{} {folder} --nodes 3{hosts} {options}", script.display())).succeeds();
}

fn checkout() -> String {
    repository().into_os_string().into_string().expect("the path of the checkout is UTF-8")
}
