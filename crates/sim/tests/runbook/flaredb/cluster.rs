//! A placement driver and stores on machines of their own: `pd1`, … and `store1`, …, in one network, with their units,
//! configuration files and drop-ins.

use std::time::Duration;

use proto::flaredb as pb;
use rpc::client::RawClient;
use serde_json::Value;
use tonic::transport::Channel;

use crate::book::fill;
use crate::said::Said;
use crate::settings::{CERTIFICATES, MAKE_CERTIFICATES, repository};
use crate::world::World;

pub const STORE_CONFIG: &str = "/etc/centra-cloud/flaredb.toml";
pub const PD_CONFIG: &str = "/etc/centra-cloud/placement-driver.toml";
const STORE_UNIT: &str = include_str!("../../../../../packaging/systemd/flaredb.service");
const PD_UNIT: &str = include_str!("../../../../../packaging/systemd/placement-driver.service");
const DROP_INS: &str = "/etc/centra-cloud/flaredb.toml.d";
const PD_FROM: usize = 11;
const STORES_FROM: usize = 21;
/// How long a start is waited for that may not come to an end.
const START_SECONDS: u32 = 6;

/// Numbers of members and stores begin at 1.
pub struct Cluster {
    pub world: World,
    pd: Vec<usize>,
    stores: Vec<usize>,
}

impl Cluster {
    /// All of them started, and the first region on as many stores as there are, three at most.
    pub fn found(members: usize, stores: usize) -> Cluster {
        Cluster::found_with(members, stores, "")
    }

    /// With a drop-in for each store.
    pub fn found_with(members: usize, stores: usize, drop_in: &str) -> Cluster {
        let mut cluster = Cluster::of(members);
        for _ in 0..stores {
            let number = cluster.add_store();
            if !drop_in.is_empty() {
                cluster.drop_in(number, drop_in);
            }
        }
        cluster.start_all(&cluster.pd);
        // However full the disk is that the tests run on.
        cluster.set_policy(r#"{"high-space-ratio": 0.98, "low-space-ratio": 0.99}"#);
        cluster.start_all(&cluster.stores);
        cluster.until_replicated(stores.min(3));
        cluster
    }

    /// So many members of the placement driver, set up and not started.
    pub fn of(members: usize) -> Cluster {
        let mut cluster = Cluster { world: World::of_flaredb(), pd: Vec::new(), stores: Vec::new() };
        for number in 1..=members {
            let address = format!("127.0.0.{}", PD_FROM + number - 1);
            let machine = cluster.world.add_loopback_machine(&format!("pd{number}"), &address, "placement-driver");
            cluster.pd.push(machine);
            cluster.set_up_pd(number, members);
        }
        cluster
    }

    /// Makes certificates where the operator's lie, and brings each machine its own.
    pub fn certify(&self) {
        let script = repository().join(MAKE_CERTIFICATES);
        let kinds = [("placement-driver", &self.pd), ("flaredb", &self.stores)];
        let all = kinds
            .iter()
            .flat_map(|(kind, machines)| (1..).zip(*machines).map(move |(n, machine)| (*kind, n, *machine)));
        let hosts: String = all
            .clone()
            .map(|(_, number, machine)| format!(" --host {number}={}", self.world.address(machine)))
            .collect();
        let (pd, stores) = (self.pd.len(), self.stores.len());
        self.world
            .operator(&format!("{} {CERTIFICATES} --nodes {stores} --pd {pd}{hosts}", script.display()))
            .succeeds();
        for (kind, number, machine) in all {
            let pair = format!("{kind}-node-{number}");
            let name = self.world.name(machine);
            let copy = format!("cd {CERTIFICATES} && scp ca.crt {pair}.crt {pair}.key {name}:{CERTIFICATES}/");
            self.world.operator(&copy).succeeds();
            self.world.on(machine, &format!("chown -R {}: {CERTIFICATES}", user_of(kind))).succeeds();
        }
    }

    fn start_all(&self, machines: &[usize]) {
        std::thread::scope(|scope| {
            machines.iter().for_each(|machine| drop(scope.spawn(|| self.world.start(*machine))));
        });
    }

    fn set_up_pd(&self, number: usize, members: usize) {
        let initial: Vec<String> =
            (1..=members).map(|member| format!("\"{member}=127.0.0.{}:2380\"", PD_FROM + member - 1)).collect();
        let address = self.world.address(self.pd[number - 1]).to_owned();
        let text = format!(
            "[cluster]\nnode_id = {number}\ninitial_members = [{}]\n\n[network]\napi_addr = \"{address}:2379\"\n\
             raft_addr = \"{address}:2380\"\n",
            initial.join(", ")
        );
        self.world.write(self.pd[number - 1], PD_CONFIG, &text);
        self.set_up_unit(self.pd[number - 1], "placement-driver");
    }

    /// With the folder that systemd makes for it (`StateDirectory=`).
    fn set_up_unit(&self, machine: usize, program: &str) {
        self.world.write_unit(machine, &unit(program));
        self.world.on(machine, &format!("chown {}: /var/lib/{program}", user_of(program))).succeeds();
    }

    /// Another store's machine, set up and not started; its number.
    pub fn add_store(&mut self) -> usize {
        let number = self.stores.len() + 1;
        let address = format!("127.0.0.{}", STORES_FROM + number - 1);
        let machine = self.world.add_loopback_machine(&format!("store{number}"), &address, "flaredb");
        self.stores.push(machine);
        self.set_up_store(number, number);
        self.set_up_unit(machine, "flaredb");
        number
    }

    pub fn set_up_store(&self, number: usize, store_id: usize) {
        let pd: Vec<String> = self.pd.iter().map(|pd| format!("\"{}:2379\"", self.world.address(*pd))).collect();
        let address = self.world.address(self.store(number));
        let text = format!(
            "[cluster]\nstore_id = {store_id}\npd_addr = [{}]\n\n[network]\napi_addr = \"{address}:2379\"\n\
             raft_addr = \"{address}:2380\"\n",
            pd.join(", ")
        );
        self.world.write(self.store(number), STORE_CONFIG, &text);
    }

    /// What stands beside a store's configuration; takes effect with the next start.
    pub fn drop_in(&self, number: usize, text: &str) {
        let machine = self.store(number);
        self.world.on(machine, &format!("mkdir -p {DROP_INS}")).succeeds();
        self.world.write(machine, &format!("{DROP_INS}/tuning.toml"), &format!("{text}\n"));
    }

    /// The machine of a store.
    pub fn store(&self, number: usize) -> usize {
        self.stores[number - 1]
    }

    /// The machine of a member of the placement driver.
    pub fn pd(&self, number: usize) -> usize {
        self.pd[number - 1]
    }

    pub fn pd_ip(&self) -> &str {
        self.world.address(self.pd[0])
    }

    pub fn store_ip(&self, number: usize) -> &str {
        self.world.address(self.store(number))
    }

    /// Runs a line of the runbook as the operator, with PD_IP and PD_NODE, wherever they occur, and these places filled in.
    pub fn line(&self, text: &str, places: &[(&str, &str)]) -> Said {
        let own = [("PD_IP", self.pd_ip()), ("PD_NODE", self.world.name(self.pd[0]))];
        let text = own.iter().fold(text.to_owned(), |text, (place, value)| text.replace(place, value));
        self.world.operator(&fill(&text, places))
    }

    /// Starts a store that may wait for something.
    pub fn begin(&self, number: usize) {
        self.world.on(self.store(number), &format!("timeout {START_SECONDS} systemctl start flaredb"));
    }

    /// A page of the placement driver; null: it is not to be had now.
    pub fn page(&self, path: &str) -> Value {
        let said = self.world.operator(&format!("curl -sS --max-time 5 http://{}:2379/pd/api/v1/{path}", self.pd_ip()));
        serde_json::from_str(&said.out).unwrap_or_default()
    }

    /// Waits until every region has so many voters, all of them caught up, and a leader.
    pub fn until_replicated(&self, count: usize) {
        self.world.until(&format!("every region is whole on {count} stores"), || {
            let page = self.page("regions");
            let regions = page["regions"].as_array().cloned().unwrap_or_default();
            let whole = |region: &Value| {
                let peers = region["peers"].as_array().cloned().unwrap_or_default();
                peers.len() == count
                    && peers.iter().all(|peer| peer["is_learner"] == false)
                    && region["leader"].is_object()
                    && region["pending_peers"].as_array().is_some_and(Vec::is_empty)
                    && region["down_peers"].as_array().is_some_and(Vec::is_empty)
            };
            !regions.is_empty() && regions.iter().all(whole)
        });
    }

    /// The store that leads the first region.
    pub fn leader(&self) -> usize {
        self.world.until_some("the first region has a leader", || {
            self.page("regions")["regions"][0]["leader"]["store_id"].as_u64().map(|id| id as usize)
        })
    }

    pub fn set_policy(&self, text: &str) {
        let post = format!(
            "curl -sS --fail --retry 40 --retry-delay 1 --retry-connrefused -X POST http://{}:2379/pd/api/v1/config/schedule -d '{text}'",
            self.pd_ip()
        );
        self.world.operator(&post).succeeds();
    }

    /// What a store has said so far.
    pub fn said(&self, number: usize) -> String {
        self.world.journal(self.store(number))
    }

    pub fn until_said(&self, number: usize, text: &str) {
        self.world.until_said(self.store(number), text);
    }

    /// The page of metrics of an address.
    pub fn metrics(&self, address: &str) -> String {
        self.world.operator(&format!("curl -sS --fail http://{address}:2379/metrics")).succeeds().out
    }

    /// Writes so many pairs of so many bytes through a store.
    pub fn fill(&self, number: usize, keys: std::ops::Range<u32>, bytes: usize) {
        let url = format!("http://{}:2379", self.store_ip(number));
        self.world.block_on(async {
            let channel = rpc::client::connect(&url, Duration::from_secs(5), None).await.unwrap();
            let mut client: RawClient<Channel> = RawClient::new(channel);
            for key in keys {
                // Bytes that no compression makes smaller.
                let mut random = base::Rng::new(u64::from(key) + 1);
                let value: Vec<u8> = (0..bytes).map(|_| random.below(256) as u8).collect();
                let request =
                    pb::PutRequest { context: None, key: format!("key-{key:06}").into(), value: value.into() };
                client.put(request).await.unwrap();
            }
        });
    }
}

/// The unit that is shipped; a machine finds the program in its PATH.
fn unit(program: &str) -> String {
    let shipped = match program {
        "flaredb" => STORE_UNIT,
        _ => PD_UNIT,
    };
    let packaged = format!("ExecStart=/usr/bin/{program}\n");
    assert!(shipped.contains(&packaged), "the unit starts something else:\n{shipped}");
    shipped.replace(&packaged, &format!("ExecStart={program}\n"))
}

/// The user that a unit's program runs as.
pub fn user_of(program: &str) -> String {
    let unit = unit(program);
    let user = unit.lines().find_map(|line| line.strip_prefix("User="));
    user.unwrap_or_else(|| panic!("no user:\n{unit}")).to_owned()
}
