//! Issue: Store Not Registering with PD. Each cause the runbook names, seen by its diagnosis and ended by its resolution.

use super::book::{quick, registering};
use super::cluster::{Cluster, STORE_CONFIG};

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

    // What an operator types into vi.
    let edit = registering::NEW_ID.replace("sudo vi", "EDIT='s/^store_id = 1/store_id = 9/' sudo vi");
    cluster.line(&edit, &place).succeeds();
    assert!(cluster.world.read(cluster.store(new), STORE_CONFIG).contains("store_id = 9"));
    cluster.line(registering::WIPE, &place).succeeds();
    cluster.until_said(new, "Registered with PD, store_id=9");
    let ids = cluster.line(registering::UNIQUE, &[]).succeeds();
    assert_eq!(ids.out, "1\n2\n3\n9\n");
}
