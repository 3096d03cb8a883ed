//! What the machines of a world are told: configuration files, certificates, the unit.
//!
//! Nodes among themselves speak mTLS, as they must off loopback. Clients are served over plain HTTP, as the runbook's
//! `http://` commands want it, unless a test says otherwise.

use std::path::PathBuf;

use crate::world::World;

pub const CONFIG: &str = "/etc/centra-cloud/chainfire.toml";
pub const CERTIFICATES: &str = "/etc/centra-cloud/certs";
/// Makes certificates into the folder given.
pub const MAKE_CERTIFICATES: &str = "scripts/generate-dev-certs.sh";

/// The unit that is shipped.
const UNIT: &str = include_str!("../../../../packaging/systemd/chainfire.service");
/// Where the package puts the program. A machine finds it in its PATH.
const PROGRAM: &str = "ExecStart=/usr/bin/chainfire\n";

/// The configuration of one node.
#[derive(Clone, Debug)]
pub struct Settings {
    pub bootstrap: bool,
    /// Numbers of machines.
    pub initial_members: Vec<usize>,
    pub tick_interval_ms: u64,
    /// How clients are served: `off`, `server` or `mutual`.
    pub api: &'static str,
    /// Further lines of these tables, and further tables.
    pub raft: String,
    pub storage: String,
    pub rest: String,
}

impl Settings {
    /// One that founds a cluster with the others.
    pub fn founder(world: &World) -> Settings {
        Settings {
            bootstrap: true,
            initial_members: (1..=world.count()).collect(),
            tick_interval_ms: 100,
            api: "off",
            raft: String::new(),
            storage: String::new(),
            rest: String::new(),
        }
    }

    pub fn text(&self, world: &World, node: usize) -> String {
        let address = world.address(node);
        let members: Vec<String> =
            self.initial_members.iter().map(|node| format!("\"{node}=node{node}:2380\"")).collect();
        let Settings { bootstrap, tick_interval_ms, api, raft, storage, rest, .. } = self;
        format!(
            "[cluster]\nbootstrap = {bootstrap}\nnode_id = {node}\ninitial_members = [{members}]\n\n\
             [network]\napi_addr = \"{address}:2379\"\nraft_addr = \"{address}:2380\"\n\
             insecure = {insecure}\n\n\
             [network.tls]\ncert_file = \"{CERTIFICATES}/chainfire-node-{node}.crt\"\n\
             key_file = \"{CERTIFICATES}/chainfire-node-{node}.key\"\nca_file = \"{CERTIFICATES}/ca.crt\"\n\
             api = \"{api}\"\n\n\
             [raft]\ntick_interval_ms = {tick_interval_ms}\n{raft}\n\
             [storage]\n{storage}\n{rest}\n",
            members = members.join(", "),
            insecure = *api == "off",
        )
    }
}

impl World {
    /// Gives a machine its configuration file and the unit.
    pub fn set_up(&self, node: usize, settings: &Settings) {
        self.write(node, CONFIG, &settings.text(self, node));
        assert!(UNIT.contains(PROGRAM), "the unit starts something else:\n{UNIT}");
        self.write_unit(node, &UNIT.replace(PROGRAM, "ExecStart=chainfire\n"));
    }

    /// Makes certificates for all machines where the operator's lie, and brings each machine its own.
    pub fn certify(&self) {
        let script = repository().join(MAKE_CERTIFICATES);
        let hosts: String = (1..=self.count()).map(|node| format!(" --host {node}={}", self.address(node))).collect();
        self.operator(&format!("{} {CERTIFICATES} --nodes {}{hosts}", script.display(), self.count())).succeeds();
        (1..=self.count()).for_each(|node| self.bring_certificates(node));
    }

    /// What the operator has for a machine, to that machine, for the unit's user.
    pub fn bring_certificates(&self, node: usize) {
        self.operator(&format!(
            "cd {CERTIFICATES} && scp ca.crt chainfire-node-{node}.crt chainfire-node-{node}.key node{node}:{CERTIFICATES}/"
        ))
        .succeeds();
        self.on(node, &format!("chown -R chainfire:chainfire {CERTIFICATES}")).succeeds();
    }

    /// A cluster of all machines, each of which serves.
    pub fn found(count: usize) -> World {
        World::found_with(count, |_| {})
    }

    pub fn found_with(count: usize, change: impl Fn(&mut Settings)) -> World {
        let world = World::new(count);
        let mut settings = Settings::founder(&world);
        change(&mut settings);
        world.certify();
        let all: Vec<usize> = (1..=count).collect();
        all.iter().for_each(|node| world.set_up(*node, &settings));
        world.start_all();
        world.until_serving(&all);
        world
    }
}

/// The checkout that is tested.
pub fn repository() -> PathBuf {
    base::crate_folder!().join("../..")
}
