//! A world for the runbook: machines made of namespaces, on one wire, each with its own folders, processes and journal.
//!
//! ```text
//!   operator ──┐            the test's own clients are here too (`block_on`)
//!   node1 ─────┤ bridge     /etc/centra-cloud, /var/lib/chainfire, /var/backups/chainfire of its own,
//!   node2 ─────┤            names in /etc/hosts, `systemctl` and `journalctl` of its own (`machine.py`)
//!   node3 ─────┘
//! ```
//!
//! A machine is a mount, network, process and host name namespace, held by its process 1. So the runbook's paths, ports
//! and host names work as they are written, on any number of machines and in any number of worlds at once, and nothing of
//! it can be seen from outside. There is nothing to take down either: namespaces, addresses, rules and mounts end with
//! their processes, and these end with the test program, however it ends. Folders of a test program that was killed are
//! removed by the next one.
//!
//! A world of FlareDB's ([`World::of_flaredb`]) has one network for all machines, and an address of 127.0.0.0/8 for each: so
//! its stores and placement drivers need no certificates.
//!
//! Needs root, like a service manager; whoever is not is told so by a failing test.

use std::fs;
use std::future::Future;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::book::{fill, quick};
use crate::client::{self, Client};
use crate::cluster::{self, PATIENCE};
use crate::said::Said;

/// The first three numbers of all addresses; worlds do not see each other's.
const WIRE: &str = "10.77.0";
const POLL: Duration = Duration::from_millis(100);
const FOLDER_PREFIX: &str = "runbook-";
/// A folder with this file in it belongs to a failed test, and stays.
const KEPT: &str = "kept";
const OPERATOR: &str = "operator";
const OPERATOR_HOST_NUMBER: u8 = 100;
const JOURNAL_LINES_SHOWN: usize = 60;
/// The units' users, who have no accounts on the machine that the tests run on; the first of them has this id.
const USER_ID: u32 = 977;
/// The programs that run as units, each as a user of its name.
const UNITS: [&str; 3] = ["chainfire", "flaredb", "placement-driver"];
/// What a shell needs of /etc.
const KEPT_OF_ETC: [&str; 6] = ["alternatives", "ld.so.cache", "localtime", "nsswitch.conf", "services", "ssl"];
const TOOLS: [(&str, &str); 11] = [
    ("enter", include_str!("tools/enter")),
    ("firewall-cmd", include_str!("tools/firewall-cmd")),
    ("iostat", include_str!("tools/iostat")),
    ("iptables", include_str!("tools/iptables")),
    ("ping", include_str!("tools/ping")),
    ("scp", include_str!("tools/scp")),
    ("slow-wire", include_str!("tools/slow-wire")),
    ("ssh", include_str!("tools/ssh")),
    ("sudo", include_str!("tools/sudo")),
    ("vi", include_str!("tools/vi")),
    ("watch", include_str!("tools/watch")),
];
const MACHINE: &str = include_str!("machine.py");

pub struct World {
    /// Dropped before the machines, whose network it uses.
    runtime: Option<Runtime>,
    machines: Vec<Machine>,
    operator: Machine,
    folder: Option<TempDir>,
}

/// One machine: its name, and the process that holds its namespaces.
struct Machine {
    name: String,
    address: String,
    /// What its service manager runs.
    unit: &'static str,
    folder: PathBuf,
    tools: PathBuf,
    /// `unshare`, whose child is process 1 of the machine.
    holder: Child,
    first_process: u32,
}

impl World {
    /// `count` machines named node1, node2, … and that of the operator. Nothing runs on them.
    pub fn new(count: usize) -> World {
        let mut world = World::of_operator();
        world.operator.must("ip link add wire type bridge && ip link set wire up");
        world.operator.must(&format!("ip addr add {}/24 dev wire", world.operator.address));
        for _ in 0..count {
            world.add_machine();
        }
        world
    }

    /// The operator's machine, on whose network all others will be. Nothing runs on it.
    pub fn of_flaredb() -> World {
        World::of_operator()
    }

    fn of_operator() -> World {
        assert_eq!(
            // SAFETY: takes nothing and cannot fail.
            unsafe { libc::geteuid() },
            0,
            "the runbook's tests make machines of namespaces, which takes root: run them as root"
        );
        remove_left_overs();
        let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let tools = write_tools(folder.path());
        let address = format!("{WIRE}.{OPERATOR_HOST_NUMBER}");
        let operator = Machine::start(folder.path(), &tools, OPERATOR, address, "chainfire");
        let mut world = World { runtime: None, machines: Vec::new(), operator, folder: Some(folder) };
        // This thread too: `block_on` runs on it.
        enter_network(&world.operator.network());
        world.runtime = Some(world.operator.runtime());
        world
    }

    /// Another machine; returns its number, which begins at 1 as in its name.
    pub fn add_machine(&mut self) -> usize {
        let number = self.machines.len() + 1;
        let name = format!("node{number}");
        let address = format!("{WIRE}.{number}");
        let machine = Machine::start(self.folder(), &self.operator.tools, &name, address, "chainfire");
        machine.connect(&self.operator);
        self.machines.push(machine);
        self.name_all();
        number
    }

    /// A machine on the operator's network, at an address of its loopback interface, with one of FlareDB's programs.
    pub fn add_loopback_machine(&mut self, name: &str, address: &str, unit: &'static str) -> usize {
        let machine = Machine::start(self.folder(), &self.operator.tools, name, address.to_owned(), unit);
        self.machines.push(machine);
        self.name_all();
        self.machines.len()
    }

    pub fn name(&self, node: usize) -> &str {
        &self.machine(node).name
    }

    pub fn count(&self) -> usize {
        self.machines.len()
    }

    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("taken only when the world is dropped").path()
    }

    pub fn address(&self, node: usize) -> &str {
        &self.machine(node).address
    }

    /// `http://ADDRESS:2379`.
    pub fn endpoint(&self, node: usize) -> String {
        format!("http://{}:{}", self.address(node), cluster::CLIENT_PORT)
    }

    pub fn endpoints(&self) -> Vec<String> {
        (1..=self.count()).map(|node| self.endpoint(node)).collect()
    }

    pub fn client(&self, node: usize) -> Client {
        self.client_with(node, client::CALL_TIMEOUT)
    }

    pub fn client_with(&self, node: usize, timeout: Duration) -> Client {
        let _entered = self.runtime().enter();
        Client::with_timeout(&self.endpoint(node), timeout)
    }

    /// Runs a shell text on the operator's machine.
    pub fn operator(&self, text: &str) -> Said {
        self.operator.run(text)
    }

    /// Starts a program in the operator's network, which ends no later than this one.
    pub fn operator_starts(&self, words: &[&str]) -> Child {
        let mut command = cluster::command(Path::new("nsenter"));
        // Into no other process namespace: it would be a child of nsenter's, which is all that ends with us.
        command.args(["--target", &self.operator.first_process.to_string(), "--mount", "--net", "--"]);
        command.args(["/usr/bin/env", &format!("PATH={}", path_of(&self.operator.tools))]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("nsenter is there")
    }

    /// Runs a shell text on a node's machine.
    pub fn on(&self, node: usize, text: &str) -> Said {
        self.machine(node).run(text)
    }

    /// A file of a node's machine, as it is reached from outside.
    pub fn path(&self, node: usize, path: &str) -> PathBuf {
        self.machine(node).path(path)
    }

    pub fn write(&self, node: usize, path: &str, text: &str) {
        fs::write(self.path(node, path), text).unwrap();
    }

    pub fn read(&self, node: usize, path: &str) -> String {
        fs::read_to_string(self.path(node, path)).unwrap()
    }

    /// What the machine's service manager knows of its unit.
    pub fn write_unit(&self, node: usize, text: &str) {
        fs::write(self.machine(node).folder.join("unit"), text).unwrap();
    }

    /// Returns when the node is ready, or has waited long enough for the others.
    pub fn start(&self, node: usize) {
        self.unit(node, "start").succeeds();
    }

    /// All at once: none is ready before it has met a majority.
    pub fn start_all(&self) {
        std::thread::scope(|scope| {
            for node in 1..=self.count() {
                scope.spawn(move || self.start(node));
            }
        });
    }

    pub fn is_active(&self, node: usize) -> bool {
        self.unit(node, "is-active").is_success()
    }

    /// `status` of a node, as the operator sees it.
    pub fn status(&self, node: usize) -> Said {
        self.operator(&fill(quick::STATUS, &[("NODE_IP", self.address(node))]))
    }

    /// The rest of a member's line in `status` through a node, whoever that is: role, address, lag.
    pub fn member(&self, through: usize, node: usize) -> Option<String> {
        let status = self.status(through);
        let prefix = format!("member: {node} ");
        status.out.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    }

    pub fn until_member(&self, through: usize, node: usize, role: &str) {
        self.until(&format!("node{node} is {role}"), || {
            self.member(through, node).is_some_and(|line| line.starts_with(role))
        });
    }

    pub fn stop(&self, node: usize) {
        self.unit(node, "stop").succeeds();
    }

    /// SIGKILL, and no restart by the service manager.
    pub fn kill(&self, node: usize) {
        self.unit(node, "power-off").succeeds();
    }

    /// `SIGSTOP`, `SIGCONT`, …
    pub fn signal(&self, node: usize, name: &str) {
        self.unit(node, &format!("kill -s {name}")).succeeds();
    }

    /// An order to the machine's service manager.
    pub fn unit(&self, node: usize, order: &str) -> Said {
        self.on(node, &format!("systemctl {order} {}", self.machine(node).unit))
    }

    /// All that a node has said.
    pub fn journal(&self, node: usize) -> String {
        self.on(node, &format!("journalctl -u {}", self.machine(node).unit)).text
    }

    /// Runs async code among the operator's network, where the nodes can be reached.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime().block_on(work)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("taken only when the world is dropped")
    }

    /// Asks again and again until it holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        self.until_some(what, || holds().then_some(()));
    }

    pub fn until_some<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = ask() {
                return found;
            }
            assert!(Instant::now() < deadline, "it never came: {what}");
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a text in a node's journal.
    pub fn until_said(&self, node: usize, text: &str) {
        self.until(&format!("node{node} says `{text}`"), || self.journal(node).contains(text));
    }

    /// Waits until each of these nodes answers a linearizable read.
    pub fn until_serving(&self, nodes: &[usize]) {
        for node in nodes {
            let client = self.client_with(*node, Duration::from_secs(2));
            self.until(&format!("node{node} serves"), || self.block_on(client.get("/")).is_ok());
        }
    }

    /// The number of the node that says of itself that it leads, with the highest term of those who do.
    pub fn leader_among(&self, nodes: &[usize]) -> usize {
        self.until_some("a leader", || self.block_on(self.find_leader(nodes)))
    }

    pub fn leader(&self) -> usize {
        let all: Vec<usize> = (1..=self.count()).collect();
        self.leader_among(&all)
    }

    async fn find_leader(&self, nodes: &[usize]) -> Option<usize> {
        let mut best = None;
        for node in nodes {
            let client = self.client_with(*node, Duration::from_millis(500));
            let Ok(status) = client.status().await else { continue };
            let own = status.header.as_ref().map_or(0, |header| header.member_id);
            if status.leader == own && own != 0 {
                best = best.max(Some((status.raft_term, *node)));
            }
        }
        best.map(|(_, node)| node)
    }

    fn machine(&self, node: usize) -> &Machine {
        &self.machines[node - 1]
    }

    /// Everybody knows everybody's name.
    fn name_all(&self) {
        let named = |machine: &Machine| format!("{} {}\n", machine.address, machine.name);
        let names: String = self.machines.iter().map(named).collect();
        for machine in self.machines.iter().chain([&self.operator]) {
            fs::write(machine.path("/etc/hosts"), format!("127.0.0.1 localhost\n{names}")).unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if std::thread::panicking() {
            for machine in &self.machines {
                let text = fs::read_to_string(machine.folder.join("journal")).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let shown = &lines[lines.len().saturating_sub(JOURNAL_LINES_SHOWN)..];
                eprintln!("── the end of the journal of {}\n{}", machine.name, shown.join("\n"));
            }
        }
        for machine in self.machines.iter_mut().chain([&mut self.operator]) {
            machine.end();
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let folder = folder.keep();
            let _ = fs::write(folder.join(KEPT), "by a failed test\n");
            eprintln!("── the folders of all machines stay in {}", folder.display());
        }
    }
}

impl Machine {
    fn start(world: &Path, tools: &Path, name: &str, address: String, unit: &'static str) -> Machine {
        let folder = world.join(name);
        make_folders(&folder, unit);
        let mut command = cluster::command(Path::new("unshare"));
        command.args(["--mount", "--uts", "--kill-child"]);
        // Otherwise the one that this thread is on, which is the operator's.
        if !address.starts_with("127.") {
            command.arg("--net");
        }
        let script = if name == OPERATOR {
            // Without a process namespace: the operator enters those of the others by process id.
            SET_UP.to_owned() + "exec sleep infinity"
        } else {
            command.args(["--pid", "--fork", "--mount-proc"]);
            SET_UP.to_owned() + "exec python3 $tools/machine.py init $folder"
        };
        command.args(["bash", "-c", &script]).env_clear();
        command.env("PATH", path_of(tools)).env("LANG", "C.UTF-8").env("name", name);
        command.env("folder", &folder).env("tools", tools).env("unit", unit);
        command.env("program", cluster::program().with_file_name(unit));
        let log = fs::File::create(folder.join("first-process.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut holder = command.spawn().expect("unshare is there");
        let ready = folder.join(if name == OPERATOR { "ready" } else { "socket" });
        let deadline = Instant::now() + PATIENCE;
        while !ready.exists() {
            let said = || fs::read_to_string(folder.join("first-process.log")).unwrap_or_default();
            if let Some(status) = holder.try_wait().unwrap() {
                panic!("a machine of namespaces cannot be made here ({status}): {}", said());
            }
            assert!(Instant::now() < deadline, "the machine {name} does not start: {}", said());
            std::thread::sleep(Duration::from_millis(5));
        }
        let first_process = if name == OPERATOR { holder.id() } else { child_of(holder.id()) };
        fs::write(folder.join("process"), first_process.to_string()).unwrap();
        Machine { name: name.to_owned(), address, unit, folder, tools: tools.to_owned(), holder, first_process }
    }

    /// A cable to the operator's bridge.
    fn connect(&self, operator: &Machine) {
        let Machine { name, first_process, address, .. } = self;
        operator.must(&format!(
            "ip link add {name} type veth peer name eth0 netns {first_process} && ip link set {name} master wire up"
        ));
        self.must(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
    }

    fn must(&self, text: &str) {
        self.run(text).succeeds();
    }

    fn run(&self, text: &str) -> Said {
        let mut command = cluster::command(Path::new("nsenter"));
        command.args(["--target", &self.first_process.to_string(), "--mount", "--net", "--uts", "--pid", "--"]);
        // `top` cuts off names of nine letters where it finds no width.
        command.args(["/usr/bin/env", "-i", "HOME=/root", "LANG=C.UTF-8", "COLUMNS=160"]);
        command.arg(format!("PATH={}", path_of(&self.tools)));
        command.arg(format!("MACHINE={}", self.folder.display()));
        command.args(["bash", "-c", text]).stdin(Stdio::null());
        let Output { status, stdout, stderr } = command.output().expect("nsenter is there");
        Said::new(&self.name, text, status, &stdout, &stderr)
    }

    fn path(&self, path: &str) -> PathBuf {
        let (own, rest) = OWN_FOLDERS
            .iter()
            .find_map(|(own, inside)| path.strip_prefix(inside).map(|rest| (own, rest)))
            .unwrap_or_else(|| panic!("{path} is not a machine's own"));
        self.folder.join(own).join(rest.trim_start_matches('/'))
    }

    /// A runtime whose every socket is on this machine's network.
    fn runtime(&self) -> Runtime {
        let network = Arc::new(self.network());
        let enter = move || enter_network(&network);
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(enter)
            .enable_all()
            .build()
            .unwrap()
    }

    fn network(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/net", self.first_process)).unwrap()
    }

    /// The kernel ends all that is in the machine before it lets its first process go.
    fn end(&mut self) {
        // SAFETY: takes numbers. The holder has not been waited for, so its child's id is not anybody else's.
        unsafe { libc::kill(self.first_process as libc::pid_t, libc::SIGKILL) };
        let _ = self.holder.wait();
    }
}

/// The calling thread is on this network from here on.
fn enter_network(network: &fs::File) {
    // SAFETY: takes numbers; the file is open.
    let entered = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "a network cannot be entered: {}", std::io::Error::last_os_error());
}

/// Folders of a machine's own: where they lie, and where they are seen inside.
const OWN_FOLDERS: [(&str, &str); 3] = [("etc", "/etc"), ("var-lib", "/var/lib"), ("var-backups", "/var/backups")];

/// Run by bash as the first process of a machine.
const SET_UP: &str = "set -e
echo $name > /proc/sys/kernel/hostname
ip link set lo up
mount --bind $program $tools/$unit
for own in etc:/etc var-lib:/var/lib var-backups:/var/backups; do mount --bind $folder/${own%%:*} ${own#*:}; done
touch $folder/ready
";

fn make_folders(folder: &Path, unit: &str) {
    for (own, _) in OWN_FOLDERS {
        fs::create_dir_all(folder.join(own)).unwrap();
    }
    let etc = folder.join("etc");
    for name in KEPT_OF_ETC {
        // Not every system has all of them.
        Command::new("cp").args(["-a", "--"]).arg(Path::new("/etc").join(name)).arg(&etc).output().unwrap();
    }
    let account = |file: &str, line: String| {
        let found = fs::read_to_string(Path::new("/etc").join(file)).unwrap();
        fs::write(etc.join(file), found + &line).unwrap();
    };
    let ids = || UNITS.iter().zip(USER_ID..);
    let users = ids().map(|(name, id)| format!("{name}:x:{id}:{id}::/var/lib/{name}:/usr/sbin/nologin\n"));
    account("passwd", users.collect());
    account("group", ids().map(|(name, id)| format!("{name}:x:{id}:\n")).collect());
    fs::create_dir_all(etc.join("centra-cloud/certs")).unwrap();
    fs::create_dir_all(folder.join("var-backups/chainfire")).unwrap();
    fs::write(folder.join("unit-name"), unit).unwrap();
    let data = folder.join("var-lib").join(unit);
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    let (_, user) = ids().find(|(name, _)| **name == unit).expect("it is one of these");
    std::os::unix::fs::chown(&data, Some(user), Some(user)).unwrap();
}

/// The runbook's programs: ours, and stand-ins for what needs a whole machine.
fn write_tools(world: &Path) -> PathBuf {
    let tools = world.join("tools");
    fs::create_dir(&tools).unwrap();
    let write = |name: &str, text: &str| {
        let path = tools.join(name);
        fs::write(&path, text.replace("@WORLD@", &world.display().to_string())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    TOOLS.iter().for_each(|(name, text)| write(name, text));
    write("machine.py", MACHINE);
    for name in ["systemctl", "journalctl"] {
        symlink("machine.py", tools.join(name)).unwrap();
    }
    let program = cluster::program();
    // A place for each program to be mounted at: the unit's user need not be able to reach the folder it was built in.
    UNITS.iter().for_each(|name| fs::write(tools.join(name), "").unwrap());
    symlink("chainfire", tools.join("rocksdb_ldb")).unwrap();
    for name in ["chainfire-client", "flaredb-client"] {
        let client = program.with_file_name(name);
        assert!(client.is_file(), "{} is not there: run `make build` first", client.display());
        symlink(client, tools.join(name)).unwrap();
    }
    tools
}

fn path_of(tools: &Path) -> String {
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display())
}

fn child_of(process: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    children.trim().parse().expect("unshare has one child")
}

/// Folders of test programs that were killed.
fn remove_left_overs() {
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(FOLDER_PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        let gone = owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists();
        if gone && !entry.path().join(KEPT).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
