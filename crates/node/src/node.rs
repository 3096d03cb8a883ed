//! A node put together: folder, log, host, threads, transport; and taken apart again.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId};
use consensus::{CreateGroup, Host, HostConfig, MachineError, Mark, Membership, Role, StateMachine};
use parking_lot::Mutex;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{EngineError, LogError, LogStore};

use crate::clock;
use crate::driver::DriverStats;
use crate::founding::{self, Answers};
use crate::gossip::{self, GossipOptions, Gossiping, SharedView};
use crate::handle::GroupHandle;
use crate::heal::{self, Damage, Ends, Health, What};
use crate::identity::{Folder, Identity, IdentityError};
use crate::outcast;
use crate::rebuilds::REBUILDS_MAX;
use crate::refused::RefusedStats;
use crate::room::{Fittings, Room};
use crate::roster::{Roster, is_alone, is_spared, votes};
use crate::seed::{self, Seed, Waiting};
use crate::standin::StandIn;
use crate::tls::{self, Certificates, Program, TlsError, TlsOptions};
use crate::transport::{CallService, Listening, Me, Peers, Transport};

const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether what lost incarnations left can go, or must.
const LOST_LOOK_EVERY: Duration = Duration::from_millis(100);
/// It must, below this, or below this part of a small disk.
const ROOM_BYTES_MIN: u64 = 256 << 20;
const ROOM_PART_OF_DISK: u64 = 4;
/// The one group of a Chainfire node.
pub const GROUP: GroupId = GroupId(1);

#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub data_dir: PathBuf,
    /// Zero: the cluster names the node when it comes.
    pub node: NodeId,
    pub name: String,
    pub listen_peer: SocketAddr,
    /// `host:port`, with or without a scheme.
    pub advertise_peer: String,
    pub client_urls: Vec<String>,
    /// All members that a new cluster begins with, or some through which an existing one is found.
    pub initial: Vec<InitialMember>,
    /// Whether this node may found a cluster.
    pub bootstrap: bool,
    pub host: HostConfig,
    pub request_timeout: Duration,
    /// Without it, members talk in the clear, and on loopback only.
    pub tls: Option<TlsOptions>,
    /// `None`: no gossip.
    pub gossip: Option<GossipOptions>,
}

impl NodeConfig {
    /// The certificates, if there are any, once it is settled that the others take them for this node's. Nothing is written: a
    /// configuration that is refused for them leaves the folder as it was, and can be checked beforehand.
    pub fn certificates(&self) -> Result<Option<Arc<Certificates>>, StartError> {
        let certificates = self.tls.clone().map(Certificates::load).transpose()?;
        if let Some(certificates) = certificates.as_ref().filter(|certificates| certificates.options().members) {
            named(certificates, Folder::node_in(&self.data_dir, self.node)?, &self.advertise_peer)?;
        }
        Ok(certificates)
    }
}

/// Snapshots that are sent at a time, one to each member that needs it.
const SNAPSHOTS_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    pub node: NodeId,
    pub address: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot listen on {address} for Raft: {error}{}", holder(*address))]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error("cannot listen on {address} for gossip: {error}{}; name another with --gossip-addr", holder(*address))]
    ListenGossip { address: SocketAddr, error: std::io::Error },
    #[error("gossip cannot be started: {0}")]
    Gossip(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "certificate {cert} names neither {} nor {host}: the other members would refuse it; make one for this node with \
         scripts/generate-dev-certs.sh", .program.name_of(*.node)
    )]
    WrongName { cert: PathBuf, program: Program, node: NodeId, host: String },
    #[error(
        "certificate {cert} names {host}, but also the number of another node, which counts alone, and this is \
         {}: the other members would refuse it; make one with scripts/generate-dev-certs.sh --by-host, which names no \
         number, if numbers are drawn, as with etcd's flags", .program.name_of(*.node)
    )]
    OtherNumber { cert: PathBuf, program: Program, node: NodeId, host: String },
    #[error("{}", .0.why)]
    Damaged(Damage),
    #[error("{0}")]
    Log(LogError),
    #[error("{0}; there is no other member to rebuild it from: restore a snapshot into an empty data folder")]
    Alone(String),
    #[error(
        "{0}; which members there are is not known either, so nothing is given up: look at it with `chainfire check`, or \
         restore a snapshot into an empty data folder"
    )]
    Unknown(String),
    #[error(
        "{0}; the others are no majority without this member and could not take it in anew: run `chainfire recover \
         --unsafe` on the best of them, then empty this folder, add it with member-add, and start it"
    )]
    NotSpared(String),
    #[error(
        "{0}; it was rebuilt {REBUILDS_MAX} times within an hour: the disk or the memory of this machine is failing; \
         replace it"
    )]
    Failing(String),
    #[error("{0}")]
    State(String),
}

/// What floor 5 keeps in the data folder.
pub struct MachineFiles {
    pub open: OpenMachine,
    pub close: CloseMachine,
    /// What was found damaged in it since it was opened.
    pub damage: MachineDamage,
    pub seed: Seed,
}

/// Opens the state machine in the data folder, once the cluster and the node are known. The last argument: whether what
/// lies there is kept; otherwise it is no cluster's, and the machine begins empty.
pub type OpenMachine =
    Box<dyn Fn(ClusterId, NodeId, bool) -> Result<Box<dyn StateMachine>, MachineError> + Send + Sync>;

pub type MachineDamage = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Lets go of everything that an [`OpenMachine`] has opened beside the machine itself, which is dropped before: the
/// folder is about to be emptied.
pub type CloseMachine = Box<dyn FnOnce() + Send>;

/// A running node.
pub struct Node {
    shell: Arc<Shell>,
    certificates: Option<Arc<Certificates>>,
    gossiping: Option<Arc<Gossiping>>,
    listening: Mutex<Option<Listening>>,
}

/// What the node's parts share.
pub(crate) struct Shell {
    pub config: NodeConfig,
    pub transport: Transport,
    pub handle: GroupHandle,
    folder: Folder,
    open_machine: OpenMachine,
    machine_damage: Arc<MachineDamage>,
    pub ends: Ends,
    /// What this node brings along for a new cluster.
    pub seed: Waiting,
    room: Room,
    pub gossip: SharedView,
    /// Where the others find this node's gossip.
    pub gossip_address: Option<String>,
    /// Taken while the node joins, so that it does so once.
    joining: Mutex<()>,
}

impl Node {
    /// Starts a node. Fails, with nothing changed, when the folder, the port or the state is not usable. `ends` is
    /// told when the node cannot go on.
    pub fn start(
        config: NodeConfig,
        runtime: &tokio::runtime::Handle,
        MachineFiles { open: open_machine, close: close_machine, damage: machine_damage, seed }: MachineFiles,
        service: impl FnOnce(GroupHandle) -> Option<Arc<dyn CallService>>,
        ends: Ends,
    ) -> Result<Node, StartError> {
        // Ports and certificates first: a folder that is not taken into use is not made either.
        let listener = TcpListener::bind(config.listen_peer)
            .map_err(|error| StartError::Listen { address: config.listen_peer, error })?;
        let gossip_listener = listen_for_gossip(config.gossip.as_ref())?;
        let certificates = config.certificates()?;
        let folder = Folder::open(&config.data_dir, seed.file)?;
        let seed = seed::find(seed, &folder, &config)?;
        let identity = folder.identity(config.node)?;
        folder.finish_reincarnation(&identity)?;
        let for_members = certificates.clone().filter(|certificates| certificates.options().members);
        let Opened { store, identity, machine, given_up, stands_in } =
            open_log(&folder, identity, &config, &open_machine, close_machine)?;
        let health = Arc::new(Health::new(given_up, stands_in));
        let machine_damage: Arc<MachineDamage> = Arc::new(machine_damage);
        let fatal = {
            let (health, store) = (health.clone(), store.clone());
            let (machine_damage, fatal) = (machine_damage.clone(), ends.fatal.clone());
            Arc::new(move |why: String| match noticed(&store, &machine_damage) {
                _ if health.is_ending() => {}
                Some(damage) => health.report(damage),
                None => fatal(why),
            })
        };
        let gossip = SharedView::default();
        let room = Room::new(Fittings {
            dir: &config.data_dir,
            identity,
            advertise: config.advertise_peer.clone(),
            peers: Peers::OnePerNode,
            store,
            health,
            fatal,
            certificates: for_members.clone(),
            request_timeout: config.request_timeout,
            election_timeout: config.host.election_timeout(),
            gossip: gossip.clone(),
            snapshots_max: SNAPSHOTS_MAX,
            runtime,
        });
        let handle = room.declare(GROUP, true);
        let transport = room.shared.transport.clone();
        for member in config.initial.iter().filter(|member| member.node != NodeId::default()) {
            transport.set_address(member.node, vec![member.address.clone()]);
        }
        let gossip_at = gossip_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let shell = Arc::new(Shell {
            gossip_address: gossip_at.map(|listen| gossip::advertised(listen, &config.advertise_peer)),
            gossip: gossip.clone(),
            config,
            transport: transport.clone(),
            handle: handle.clone(),
            folder,
            open_machine,
            machine_damage,
            ends,
            seed,
            room,
            joining: Mutex::default(),
        });
        if identity.cluster != ClusterId::default() {
            let machine = match machine {
                Some(machine) => machine,
                None => (shell.open_machine)(identity.cluster, identity.node, true)
                    .map_err(|error| StartError::State(error.to_string()))?,
            };
            shell.host(machine).map_err(StartError::State)?;
        }
        transport.set_service(Arc::new(Answers {
            shell: shell.clone(),
            service: service(handle),
            leaves: Arc::default(),
        }));
        let listening = Listening::start(listener, transport)
            .map_err(|error| StartError::Listen { address: shell.config.listen_peer, error })?;
        let start = |listener| Gossiping::start(listener, shell.clone(), for_members, gossip);
        let gossiping = gossip_listener.map(start).transpose().map_err(StartError::Gossip)?.map(Arc::new);
        runtime.spawn(founding::settle(shell.clone()));
        runtime.spawn(outcast::watch(shell.clone()));
        runtime.spawn(forget_lost(shell.clone()));
        runtime.spawn(heal::watch(shell.clone()));
        if let Some(certificates) = &certificates {
            runtime.spawn(tls::reload::tend(certificates.clone()));
        }
        Ok(Node { shell, certificates, gossiping, listening: Mutex::new(Some(listening)) })
    }

    pub fn handle(&self) -> GroupHandle {
        self.shell.handle.clone()
    }

    /// Those in use on all ports.
    pub fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    pub fn stats(&self) -> Arc<DriverStats> {
        self.shell.room.engines.stats.clone()
    }

    /// Bytes sent to each node and received from it, before encryption.
    pub fn traffic(&self) -> Vec<(NodeId, u64, u64)> {
        self.shell.transport.traffic()
    }

    /// Connections on the Raft port that were not taken.
    pub fn peers_refused(&self) -> RefusedStats {
        self.shell.transport.turned_away()
    }

    /// For those who check it.
    pub fn log(&self) -> Arc<SegLog> {
        self.shell.room.store.clone()
    }

    pub fn log_stats(&self) -> storage::log::LogStats {
        self.shell.room.store.stats()
    }

    /// Hands leadership over, stops the threads, makes the state durable.
    pub async fn stop(&self) {
        let handle = self.handle();
        let alone = handle.membership().voters.len() <= 1;
        if handle.status().role == Role::Leader && !alone {
            // Without a follower that can take over, the others elect one when they miss this node.
            let _ = tokio::time::timeout(HANDOVER_TIMEOUT, handle.transfer(None)).await;
        }
        drop(self.listening.lock().take());
        let (shell, gossiping) = (self.shell.clone(), self.gossiping.clone());
        let stopped = tokio::task::spawn_blocking(move || {
            if let Some(gossiping) = gossiping {
                gossiping.stop();
            }
            shell.stop_threads();
        });
        let _ = stopped.await;
    }
}

impl Shell {
    pub fn identity(&self) -> Identity {
        **self.handle.node.identity.load()
    }

    /// Ends the threads, and with them all that this node says to others.
    pub fn stop_threads(&self) {
        self.room.stop();
    }

    pub fn health(&self) -> &Health {
        &self.handle.node.health
    }

    /// What log and state have noticed by themselves.
    pub fn noticed(&self) -> Option<Damage> {
        noticed(&self.room.store, &self.machine_damage)
    }

    /// See [`Folder::mark_lost`].
    pub fn mark_lost(&self, damage: &Damage) -> Result<(), String> {
        self.folder.mark_lost(&damage.encode()).map_err(|error| error.to_string())
    }

    /// See [`Folder::mark_damaged`].
    pub fn mark_damaged(&self, damage: &Damage) -> Result<(), String> {
        self.folder.mark_damaged(&damage.encode()).map_err(|error| error.to_string())
    }

    /// Other nodes' addresses, from the membership and the configuration.
    pub fn known_addresses(&self) -> Vec<String> {
        let membership = self.handle.membership();
        let members = membership.members.values().flat_map(|member| member.peer_urls.iter());
        let initial = self.config.initial.iter().map(|member| &member.address);
        let own = crate::transport::bare_address(&self.config.advertise_peer).to_owned();
        let mut all: Vec<String> =
            members.chain(initial).filter(|address| crate::transport::bare_address(address) != own).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// This node belongs to a cluster from now on: as one of its founders, or to be filled by its leader. The state is
    /// the cluster's before the identity is: a node that stops in between belongs to no cluster and has no state.
    pub fn join(&self, cluster: ClusterId, node: NodeId, founding: Option<Membership>) -> Result<(), String> {
        let _once = self.joining.lock();
        if self.identity().cluster != ClusterId::default() {
            return if self.identity().cluster == cluster { Ok(()) } else { Err("in another cluster".to_owned()) };
        }
        if founding.is_some() && !self.seed.is_ready() {
            return Err("the restored state is not loaded yet".to_owned());
        }
        let opened = (self.open_machine)(cluster, node, founding.is_some());
        let mut machine = opened.map_err(|error| error.to_string())?;
        if let Some(membership) = founding {
            let mark = Mark { index: 1, term: 1, hash: base::hash::START };
            machine.found(mark, membership.encode().into()).map_err(|error| error.to_string())?;
        }
        self.keep_members(&*machine)?;
        let identity = Identity { cluster, node, ..self.identity() };
        self.folder.save(&identity).map_err(|error| error.to_string())?;
        self.set_identity(identity);
        self.folder.remove_seed(self.seed.file).map_err(|error| error.to_string())?;
        self.host(machine)
    }

    /// Loads what this node brings along for a new cluster, if that was not done. A state that cannot be loaded ends the
    /// node: it would otherwise found a cluster without it, or wait for ever.
    pub async fn load_seed(self: &Arc<Self>) {
        let shell = self.clone();
        let loaded = tokio::task::spawn_blocking(move || shell.seed.load()).await;
        if let Err(why) = loaded.map_err(|error| error.to_string()).flatten() {
            (self.room.engines.fatal)(why);
        }
    }

    /// The founder need not wait until it misses a leader.
    pub fn campaign(&self) {
        self.room.campaign(GROUP);
    }

    fn set_identity(&self, identity: Identity) {
        self.handle.node.identity.store(Arc::new(identity));
        let Identity { node, peer, cluster, .. } = identity;
        self.transport.set_me(Me { node, peer, cluster, address: self.config.advertise_peer.clone() });
    }

    /// Starts the threads and puts the group on the host.
    fn host(&self, machine: Box<dyn StateMachine>) -> Result<(), String> {
        let identity = self.identity();
        let membership = self.keep_members(&*machine)?.into();
        let fresh = !identity.voted;
        if fresh {
            self.folder.save(&Identity { voted: true, ..identity }).map_err(|error| error.to_string())?;
            self.set_identity(Identity { voted: true, ..identity });
        }
        let mark = machine.mark();
        self.room.start(identity.node, self.config.host);
        self.room.create(CreateGroup { group: GROUP, peer: identity.peer, mark, membership, fresh }, machine, false);
        Ok(())
    }

    /// What the state says, unless what is kept is later; the log has the difference.
    fn keep_members(&self, machine: &dyn StateMachine) -> Result<Membership, String> {
        let membership = Membership::decode(&machine.membership()).ok_or("the stored membership is damaged")?;
        let dir = self.folder.path();
        let known = Roster::load(dir).map_err(|error| error.to_string())?;
        let roster = Roster { index: machine.mark().index, membership: membership.clone() };
        if known.is_none_or(|known| known.index < roster.index && known.membership != roster.membership) {
            roster.save(dir).map_err(|error| format!("cannot keep who the members are: {error}"))?;
        }
        Ok(membership)
    }
}

fn noticed(store: &SegLog, machine_damage: &MachineDamage) -> Option<Damage> {
    let log = store.damage().map(|error| Damage::new(What::Log, error));
    log.or_else(|| machine_damage().map(|why| Damage::new(What::State, why)))
}

struct Opened {
    store: Arc<SegLog>,
    identity: Identity,
    machine: Option<Box<dyn StateMachine>>,
    /// Why the incarnation before this one was given up, if that was just now.
    given_up: Option<Damage>,
    /// Why `machine` is a stand-in, if it is.
    stands_in: Option<Damage>,
}

/// Opens the log and the state. With a damaged log, or one that is shorter than it was, the whole incarnation is given up, and
/// the member rebuilt from the others under a new peer id; with a state that is damaged, or does not go with the log, it goes
/// on with the log alone ([`heal`]).
fn open_log(
    folder: &Folder,
    identity: Identity,
    config: &NodeConfig,
    open_machine: &OpenMachine,
    close_machine: CloseMachine,
) -> Result<Opened, StartError> {
    let dir = folder.path().join("raft");
    // A log that was written once cannot be gone.
    let options = SegLogOptions { must_exist: identity.voted, ..SegLogOptions::new(clock::random_u64()) };
    if let Some(mark) = folder.lost_mark()? {
        // It was decided when it could be.
        return give_up(folder, &identity, Damage::decode(&mark));
    }
    let belongs = identity.cluster != ClusterId::default();
    let roster = Roster::load(folder.path())
        .map_err(|error| StartError::State(format!("cannot read who the members are: {error}")))?;
    let store = match SegLog::open(&dir, options) {
        Ok(store) => Arc::new(store),
        Err(error @ (LogError::Corrupt { .. } | LogError::Lost { .. })) => {
            if !belongs && !others_configured(config) {
                return Err(StartError::Alone(error.to_string()));
            }
            let damage = Damage::new(What::Log, error);
            return if belongs {
                give_up_if_spared(folder, &identity, roster.as_ref(), damage)
            } else {
                give_up(folder, &identity, damage)
            };
        }
        Err(error) => return Err(StartError::Log(error)),
    };
    let opened = |machine, stands_in| Opened { store: store.clone(), identity, machine, given_up: None, stands_in };
    if !belongs {
        return Ok(opened(None, None));
    }
    let damage = match folder.damaged_mark()? {
        Some(mark) => Damage::decode(&mark),
        None => match open_state(folder, &identity, &store, open_machine)? {
            Ok(machine) => return Ok(opened(Some(machine), None)),
            Err(damage) => damage,
        },
    };
    close_machine();
    let Some(roster) = roster else { return Err(StartError::Unknown(damage.why)) };
    if is_alone(&roster.membership, identity.peer) {
        return Err(StartError::Alone(damage.why));
    }
    if !votes(&roster.membership, identity.peer) {
        drop(store);
        return give_up(folder, &identity, damage);
    }
    let Some(stand_in) = StandIn::new(&roster, &*store) else {
        drop(store);
        let why = format!("{}; and the log ends before entry {}", damage.why, roster.index);
        return give_up_if_spared(folder, &identity, Some(&roster), Damage::new(What::Log, why));
    };
    folder.mark_damaged(&damage.encode())?;
    tracing::error!(
        target: "chainfire_storage",
        "The state is not to be used, this member goes on with its log alone, what={} why={} code=CF4010",
        damage.what.name(),
        damage.why
    );
    Ok(opened(Some(Box::new(stand_in)), Some(damage)))
}

/// The state that goes with the log, or what is wrong with it.
fn open_state(
    folder: &Folder,
    identity: &Identity,
    store: &SegLog,
    open_machine: &OpenMachine,
) -> Result<Result<Box<dyn StateMachine>, Damage>, StartError> {
    let machine = match open_machine(identity.cluster, identity.node, true) {
        Ok(machine) => machine,
        Err(error @ (MachineError::Damaged(_) | MachineError::Engine(EngineError::Corrupt(_)))) => {
            return Ok(Err(Damage::new(What::State, error)));
        }
        Err(error) => return Err(StartError::State(error.to_string())),
    };
    let wrong = untrusted(folder, &*machine)?.or_else(|| Host::mismatch(store, GROUP, machine.mark()));
    Ok(wrong.map_or(Ok(machine), |why| Err(Damage::new(What::State, why))))
}

fn give_up_if_spared(
    folder: &Folder,
    identity: &Identity,
    roster: Option<&Roster>,
    damage: Damage,
) -> Result<Opened, StartError> {
    let Some(Roster { membership, .. }) = roster else { return Err(StartError::Unknown(damage.why)) };
    if is_alone(membership, identity.peer) {
        Err(StartError::Alone(damage.why))
    } else if !is_spared(membership, identity.peer) {
        Err(StartError::NotSpared(damage.why))
    } else {
        give_up(folder, identity, damage)
    }
}

/// The whole incarnation: another one begins in its place.
fn give_up(folder: &Folder, identity: &Identity, damage: Damage) -> Result<Opened, StartError> {
    if !folder.count_rebuild(heal::unix_s())? {
        return Err(StartError::Failing(damage.why));
    }
    let next = folder.reincarnate(identity)?;
    tracing::error!(
        target: "chainfire_storage",
        "This member is lost and is rebuilt from its peers, why={} what={} old_peer={} new_peer={} code=CF1001",
        damage.why,
        damage.what.name(),
        identity.peer,
        next.peer
    );
    let options = SegLogOptions::new(clock::random_u64());
    let store = SegLog::open(&folder.path().join("raft"), options).map_err(StartError::Log)?;
    Ok(Opened { store: Arc::new(store), identity: next, machine: None, given_up: Some(damage), stands_in: None })
}

/// Whether the configuration names other members than this node.
fn others_configured(config: &NodeConfig) -> bool {
    let bare = crate::transport::bare_address;
    config.initial.iter().any(|member| bare(&member.address) != bare(&config.advertise_peer))
}

/// Whether the others will take this node's certificate for its own.
pub(crate) fn named(certificates: &Certificates, node: NodeId, address: &str) -> Result<(), StartError> {
    if certificates.name_this_node(node, address) {
        return Ok(());
    }
    let options = certificates.options();
    let (cert, program, host) = (options.cert_file.clone(), options.program, tls::host_of(address).to_owned());
    if certificates.name_host(address) {
        return Err(StartError::OtherNumber { cert, program, node, host });
    }
    Err(StartError::WrongName { cert, program, node, host })
}

/// `None`: no gossip is wanted, or it can be done without.
fn listen_for_gossip(options: Option<&GossipOptions>) -> Result<Option<TcpListener>, StartError> {
    let Some(GossipOptions { listen, required }) = options else { return Ok(None) };
    let address = *listen;
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if *required => Err(StartError::ListenGossip { address, error }),
        Err(error) => {
            tracing::warn!(
                target: "chainfire_gossip",
                "There is no gossip: cannot listen, addr={address} why={error}{} code=CF3204",
                holder(address)
            );
            Ok(None)
        }
    }
}

fn voters(machine: &dyn StateMachine) -> usize {
    Membership::decode(&machine.membership()).map_or(0, |membership| membership.voters.len())
}

/// Why the state must come from a peer although it can be read: it went through a repair. Without peers it has to do.
fn untrusted(folder: &Folder, machine: &dyn StateMachine) -> Result<Option<String>, StartError> {
    let Some(why) = folder.repaired() else { return Ok(None) };
    if voters(machine) != 1 {
        return Ok(Some(why.to_owned()));
    }
    folder.keep_repaired()?;
    tracing::warn!(
        target: "chainfire_storage",
        "{why}, and there is no other member to get it from: what could be read is served, keys may be missing or old \
         code=CF4106"
    );
    Ok(None)
}

/// What a lost incarnation left is removed when the member stands again; and before, part by part, when the cluster has
/// admitted this one and its state needs the room.
async fn forget_lost(shell: Arc<Shell>) {
    loop {
        let peer = shell.identity().peer;
        if shell.handle.membership().members.values().any(|member| member.peer == peer) {
            shell.folder.forget_lost();
            return shell.health().rebuilt();
        }
        // A leader speaks only to those whom it has admitted.
        let admitted = !shell.handle.status().leader.is_none();
        if admitted
            && crate::disk::room(shell.folder.path()).is_some_and(|(free, total)| lacks_room(free, total))
            && let Some(path) = shell.folder.drop_some_lost()
        {
            tracing::warn!(
                target: "chainfire_storage",
                "The state that is received needs room, a part of what was given up is removed, path={} code=CF4014",
                path.display()
            );
        }
        tokio::time::sleep(LOST_LOOK_EVERY).await;
    }
}

/// Above the line at which a disk counts as full, and nothing more is received.
fn lacks_room(free: u64, total: u64) -> bool {
    free < ROOM_BYTES_MIN.min(total / ROOM_PART_OF_DISK)
}

/// Who holds a port, where the kernel tells: ", held by pid 12 (name)".
pub fn holder(address: SocketAddr) -> String {
    let port = format!("{:04X}", address.port());
    let own = kernel_form(address.ip());
    let is_any = |ip: &str| ip.bytes().all(|digit| digit == b'0');
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let listening = tables.iter().flat_map(|table| table.lines()).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, at) = fields.get(1)?.split_once(':')?;
        let conflicts = at == port && (ip == own || is_any(ip) || is_any(&own)) && *fields.get(3)? == "0A";
        conflicts.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    });
    let inodes: Vec<String> = listening.collect();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = descriptors
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()));
        if holds {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("; it is held by pid {name} ({})", command.trim());
        }
    }
    String::new()
}

/// An address as the kernel's tables show it: words of 32 bits in the machine's own order.
fn kernel_form(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    };
    let (words, _) = octets.as_chunks::<4>();
    words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
}
