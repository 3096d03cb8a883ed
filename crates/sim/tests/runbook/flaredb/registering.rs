//! Issue: Store Not Registering with PD. Each cause the runbook names, seen by its diagnosis and ended by its resolution.

use super::book::{quick, registering};
use super::cluster::{Cluster, PD_CONFIG, STORE_CONFIG};
use crate::settings::CERTIFICATES;

/// Refuses what goes to one address's ports, until `firewall-cmd` opens them. What is connected stays so.
const FIREWALL: &str = "\
add table inet firewall
add set inet firewall open { type inet_service; }
add chain inet firewall in { type filter hook input priority 0; policy accept; }
add rule inet firewall in ip daddr != ADDRESS accept
add rule inet firewall in ct state established,related accept
add rule inet firewall in tcp dport @open accept
add rule inet firewall in tcp dport { 2379, 2380 } reject with tcp reset
";

#[test]
fn a_firewall_keeps_a_store_out_until_its_port_is_open() {
    let mut cluster = Cluster::found(1, 1);
    let new = cluster.add_store();
    let rules = FIREWALL.replace("ADDRESS", cluster.pd_ip());
    cluster.world.on(cluster.pd(1), &format!("nft -f - <<'END'\n{rules}END")).succeeds();
    cluster.begin(new);
    let place = [("FLAREDB_NODE", "store2")];

    cluster.until_said(new, registering::ERROR);
    cluster.line(registering::CONNECTIVITY, &place).fails().shows("Connection refused");
    cluster.line(registering::ADDRESS, &place).succeeds().shows("pd_addr = ").shows(cluster.pd_ip());
    let said = cluster.line(registering::STORE_LOGS, &place).succeeds();
    let said = said.shows("WARN flaredb_pd_client: failed to register with PD, retrying, addr=http://127.0.0.11:2379");
    said.shows("onnection refused");
    // The placement driver knows of the first store only; nothing of the new one came there.
    cluster.line(registering::PD_LOGS, &[]).succeeds().shows("Registered a store, store_id=1").hides("store_id=2");

    cluster.line(registering::OPEN_FIREWALL, &place).succeeds().shows("success");
    cluster.line(registering::CONNECTIVITY, &place).succeeds();
    cluster.until_said(new, "INFO flaredb_pd_client: Registered with PD, store_id=2");
    cluster.line(registering::PD_LOGS, &[]).succeeds().shows("Registered a store, store_id=2");
    cluster.until_replicated(2);
    cluster.line(quick::STATUS, &[]).shows("store: 2 Up");
}

#[test]
fn a_duplicate_store_id_is_refused_until_the_store_has_its_own() {
    let mut cluster = Cluster::found(1, 3);
    let new = cluster.add_store();
    cluster.set_up_store(new, 1);
    cluster.begin(new);
    let place = [("FLAREDB_NODE", "store4")];

    cluster.until_said(new, registering::ERROR);
    let said = cluster.line(registering::STORE_LOGS, &place).succeeds();
    said.shows("failed to register with PD").shows("duplicate store_id 1").shows("take another store_id");
    cluster.line(registering::PD_LOGS, &[]).succeeds().shows("Did not register a store, store_id=1");
    // The ids that are taken: each once.
    let ids = cluster.line(registering::UNIQUE, &[]).succeeds();
    assert_eq!(ids.out, "1\n2\n3\n");
    let status = cluster.line(quick::STATUS, &[]).succeeds();
    assert_eq!(status.out.matches("store: ").count(), 3, "{status}");
    // Both are shown: the store that has the id, and the one that was refused.
    status.shows("store: 1 Up http://127.0.0.21:2379").shows("refused: store_id 1 at http://127.0.0.24:2379");
    let refused = cluster.page("stores")["refused"].clone();
    let reason = refused[0]["reason"].as_str().unwrap_or_default();
    assert!(refused[0]["store_id"] == 1 && reason.contains("duplicate store_id 1"), "{refused}");
    let both = cluster.page("store/1");
    let addresses = [&both["address"], &both["refused"][0]["address"]].map(|address| address.as_str());
    assert_eq!(addresses, [Some("http://127.0.0.21:2379"), Some("http://127.0.0.24:2379")], "{both}");

    // What an operator types into vi.
    let edit = registering::NEW_ID.replace("sudo vi", "EDIT='s/^store_id = 1/store_id = 9/' sudo vi");
    cluster.line(&edit, &place).succeeds();
    assert!(cluster.world.read(cluster.store(new), STORE_CONFIG).contains("store_id = 9"));
    cluster.line(registering::WIPE, &place).succeeds();
    cluster.until_said(new, "Registered with PD, store_id=9");
    let ids = cluster.line(registering::UNIQUE, &[]).succeeds();
    assert_eq!(ids.out, "1\n2\n3\n9\n");
    cluster.line(quick::STATUS, &[]).succeeds().shows("store: 9 Up http://127.0.0.24:2379");
}

#[test]
fn a_store_without_tls_is_told_of_the_mismatch_until_it_has_the_settings() {
    let mut cluster = Cluster::of(1);
    let new = cluster.add_store();
    cluster.certify();
    let (pd, store) = (cluster.pd(1), cluster.store(new));
    let settings = registering::TLS.replace("flaredb-node-N", "placement-driver-node-1");
    cluster.world.write(pd, PD_CONFIG, &(cluster.world.read(pd, PD_CONFIG) + &settings));
    cluster.world.start(pd);
    cluster.begin(new);
    let place = [("FLAREDB_NODE", "store1")];

    cluster.until_said(new, registering::ERROR);
    let said = cluster.line(registering::STORE_LOGS, &place).succeeds();
    said.shows("TLS mismatch: either PD and stores both use TLS, or none of them does").hides("Registered with PD");
    cluster.line(registering::PD_LOGS, &[]).hides("store_id=");

    // What an operator types into vi.
    const TYPED: &str = "/etc/centra-cloud/typed";
    cluster.world.write(store, TYPED, &registering::TLS.replace("node-N", "node-1"));
    let edit = registering::SETTINGS.replace("sudo vi", &format!("EDIT='\\$r {TYPED}' sudo vi"));
    cluster.line(&edit, &place).succeeds();
    assert!(cluster.world.read(store, STORE_CONFIG).contains("[tls]\ncert_file"));
    cluster.line(registering::RESTART, &place).succeeds();
    cluster.until_said(new, "INFO flaredb_pd_client: Registered with PD, store_id=1");
    cluster.line(registering::PD_LOGS, &[]).succeeds().shows("Registered a store, store_id=1");
    let secure = format!(
        "https://PD_IP:2379 --cacert {CERTIFICATES}/ca.crt --cert {CERTIFICATES}/client.crt --key {CERTIFICATES}/client.key"
    );
    cluster.line(&quick::STATUS.replace("http://PD_IP:2379", &secure), &[]).shows("store: 1 Up");
}
