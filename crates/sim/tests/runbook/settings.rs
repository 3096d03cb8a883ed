//! What the machines of a world are told: configuration files, the unit, and what a test adds to them.

use crate::world::World;

pub const CONFIG: &str = "/etc/centra-cloud/chainfire.toml";

/// The service manager's view of Chainfire.
pub const UNIT: &str = "[Unit]
Description=Chainfire
[Service]
Type=exec
User=chainfire
ExecStart=chainfire --config /etc/centra-cloud/chainfire.toml
Restart=on-failure
RestartSec=1s
TimeoutStopSec=30s
";

/// The configuration of one node.
#[derive(Clone, Debug)]
pub struct Settings {
    pub bootstrap: bool,
    /// Numbers of machines.
    pub initial_members: Vec<usize>,
    pub tick_interval_ms: u64,
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
            raft: String::new(),
            storage: String::new(),
            rest: String::new(),
        }
    }

    pub fn text(&self, world: &World, node: usize) -> String {
        let address = world.address(node);
        let members: Vec<String> = self.initial_members.iter().map(|node| format!("\"{node}=node{node}:2380\"")).collect();
        let Settings { bootstrap, tick_interval_ms, raft, storage, rest, .. } = self;
        format!(
            "[cluster]\nbootstrap = {bootstrap}\nnode_id = {node}\ninitial_members = [{members}]\n\
             [network]\napi_addr = [\"{address}:2379\", \"127.0.0.1:2379\"]\nraft_addr = \"{address}:2380\"\n\
             [raft]\ntick_interval_ms = {tick_interval_ms}\n{raft}\n\
             [storage]\n{storage}\n{rest}\n",
            members = members.join(", "),
        )
    }
}

impl World {
    /// Gives a machine its configuration file and the unit.
    pub fn set_up(&self, node: usize, settings: &Settings) {
        self.write(node, CONFIG, &settings.text(self, node));
        self.write_unit(node, UNIT);
    }

    /// A cluster of all machines, each of which serves.
    pub fn found(count: usize) -> World {
        World::found_with(count, |_| {})
    }

    pub fn found_with(count: usize, change: impl Fn(&mut Settings)) -> World {
        let world = World::new(count);
        let mut settings = Settings::founder(&world);
        change(&mut settings);
        let all: Vec<usize> = (1..=count).collect();
        all.iter().for_each(|node| world.set_up(*node, &settings));
        all.iter().for_each(|node| world.start(*node));
        world.until_serving(&all);
        world
    }
}
