//! A node with many groups: a FlareDB store. Which groups it has, and with whom, is decided elsewhere (by a placement
//! driver) and told to it; so there is no founding here, no gossip, and no roster of members: nodes are known by
//! what [`ManyNode::set_address`] says.
//!
//! The life of a node: [`ManyNode::open`] takes port and folder and opens the log; nothing runs yet. Whoever assigns ids is
//! asked for one. [`ManyNode::begin`] makes the folder that node's for ever, and starts the threads. Then groups are
//! created, those of an earlier life first.
//!
//! A group's peer on this node has an id of its own, given by whoever places it, and never used again: one that was removed
//! and comes back is another peer.
//!
//! Damage of the log or the state is kept in the folder before the node ends ([`StartError::Damaged`] from then on): whether
//! the others can do without this one, which then begins anew under another incarnation, is for whoever places groups to say.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId};
use consensus::{CreateGroup, Event, Host, HostConfig, Input, MachineError, Role, StateMachine};
use parking_lot::Mutex;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{LogError, LogStore};
use tokio::sync::broadcast;

use crate::clock;
use crate::driver::DriverStats;
use crate::gossip::SharedView;
use crate::ground::Controls;
use crate::handle::GroupHandle;
use crate::heal::{Damage, Health, What};
use crate::identity::{Folder, Identity};
use crate::inbox::Inbox;
use crate::node::{StartError, named};
use crate::room::{Fittings, Room};
use crate::tls::{self, Certificates, TlsOptions};
use crate::transport::{CallService, Listening, Peers, Transport};

/// Leadership of all groups is handed over within this time when the node stops.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct ManyConfig {
    pub data_dir: PathBuf,
    /// Zero: whatever id is assigned.
    pub node: NodeId,
    pub listen_peer: SocketAddr,
    /// `host:port`, with or without a scheme.
    pub advertise_peer: String,
    pub host: HostConfig,
    pub request_timeout: Duration,
    /// Snapshots that are sent at a time, and that are received.
    pub snapshots_max: usize,
    /// Without it, nodes talk in the clear, and on loopback only.
    pub tls: Option<TlsOptions>,
}

impl ManyConfig {
    /// As [`NodeConfig::certificates`](crate::NodeConfig::certificates). A node that has no number yet may be given any.
    pub fn certificates(&self) -> Result<Option<Arc<Certificates>>, StartError> {
        let certificates = self.tls.clone().map(Certificates::load).transpose()?;
        if let Some(certificates) = &certificates {
            let node = Folder::node_in(&self.data_dir, self.node)?;
            if node != NodeId::default() {
                named(certificates, node, &self.advertise_peer)?;
            }
        }
        Ok(certificates)
    }
}

/// What the process does when the node cannot go on.
#[derive(Clone)]
pub struct Ends {
    /// For this reason.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    /// Because of damage, which the folder knows of by now.
    pub damaged: Arc<dyn Fn(Damage) + Send + Sync>,
}

/// What is known to be damaged in the state.
type Notice = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Whether a group may begin on a log. The error: its state does not go with what is there.
pub fn check_log(log: &dyn LogStore, create: &CreateGroup) -> Result<(), MachineError> {
    // The log writer may not have come to it yet: what is there belongs to another peer, which was taken away.
    if create.fresh && log.state(create.group).is_some() {
        return Err(MachineError::Damaged("the log of another peer of this group is not gone yet".to_owned()));
    }
    Host::mismatch(log, create.group, create.mark).map_or(Ok(()), |why| Err(MachineError::Damaged(why)))
}

/// See the header.
pub struct ManyNode {
    config: ManyConfig,
    folder: Arc<Folder>,
    room: Room,
    noticed: Arc<OnceLock<Notice>>,
    certificates: Option<Arc<Certificates>>,
    listener: Mutex<Option<TcpListener>>,
    listening: Mutex<Option<Listening>>,
}

/// To the host, through its queue.
struct ToHost {
    inbox: Arc<Inbox<Input>>,
}

impl Controls for ToHost {
    fn hold_changes(&self, group: GroupId, held: bool) {
        self.inbox.push(Input::HoldChanges { group, held });
    }

    fn vouch(&self, group: GroupId, index: u64, term: u64) {
        self.inbox.push(Input::Vouch { group, index, term });
    }
}

impl ManyNode {
    /// Takes the port and the folder and opens the log. Fails, with nothing changed, when one of them is not usable.
    pub fn open(config: ManyConfig, runtime: &tokio::runtime::Handle, ends: Ends) -> Result<ManyNode, StartError> {
        let listener = TcpListener::bind(config.listen_peer)
            .map_err(|error| StartError::Listen { address: config.listen_peer, error })?;
        let certificates = config.certificates()?;
        let folder = Arc::new(Folder::open(&config.data_dir, "")?);
        let identity = folder.identity(config.node)?;
        folder.finish_reincarnation(&identity)?;
        if let Some(mark) = folder.damaged_mark()? {
            return Err(StartError::Damaged(Damage::decode(&mark)));
        }
        // A log that was written once cannot be gone.
        let options = SegLogOptions { must_exist: identity.voted, ..SegLogOptions::new(clock::random_u64()) };
        let store = SegLog::open(&folder.path().join("raft"), options).map_err(|error| match error {
            error @ (LogError::Corrupt { .. } | LogError::Lost { .. }) => {
                StartError::Damaged(Damage::new(What::Log, error))
            }
            other => StartError::Log(other),
        })?;
        if let Some(certificates) = &certificates {
            runtime.spawn(tls::reload::tend(certificates.clone()));
        }
        let (store, health, noticed) =
            (Arc::new(store), Arc::new(Health::default()), Arc::<OnceLock<Notice>>::default());
        let fatal = {
            let (folder, health, log, noticed) = (folder.clone(), health.clone(), store.clone(), noticed.clone());
            move |why: String| {
                let of_state = || noticed.get().and_then(|notice| notice()).map(|why| Damage::new(What::State, why));
                let damage = log.damage().map(|error| Damage::new(What::Log, error)).or_else(|| health.found());
                let Some(damage) = damage.or_else(of_state) else { return (ends.fatal)(why) };
                match folder.mark_damaged(&damage.encode()) {
                    Ok(()) => (ends.damaged)(damage),
                    Err(error) => (ends.fatal)(format!("{}; {error}", damage.why)),
                }
            }
        };
        let room = Room::new(Fittings {
            dir: &config.data_dir,
            identity,
            advertise: config.advertise_peer.clone(),
            peers: Peers::OnePerGroup,
            store,
            health,
            fatal: Arc::new(fatal),
            certificates: certificates.clone(),
            request_timeout: config.request_timeout,
            election_timeout: config.host.election_timeout(),
            gossip: SharedView::default(),
            snapshots_max: config.snapshots_max,
            runtime,
        });
        Ok(ManyNode {
            config,
            folder,
            room,
            noticed,
            certificates,
            listener: Mutex::new(Some(listener)),
            listening: Mutex::default(),
        })
    }

    /// Its data folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `notice` says what is damaged in the state, if something is; it is asked when the node cannot go on.
    pub fn set_notice(&self, notice: impl Fn() -> Option<String> + Send + Sync + 'static) {
        assert!(self.noticed.set(Box::new(notice)).is_ok(), "there is one state");
    }

    /// The state is damaged: nothing is answered from it any more, and the node ends.
    pub fn is_damaged(&self, why: String) {
        self.ends_with(Damage::new(What::State, why));
    }

    fn ends_with(&self, damage: Damage) {
        self.room.engines.health.report(damage.clone());
        (self.room.engines.fatal)(damage.why);
    }

    /// Ends the node if its log or its state has noticed damage; says whether it does. To be asked now and then: who reads
    /// only to check (a [scrub](crate::scrub)) tells nobody.
    pub fn ends_if_damaged(&self) -> bool {
        let log = self.room.store.damage().map(|error| Damage::new(What::Log, error));
        let of_state = || self.noticed.get()?().map(|why| Damage::new(What::State, why));
        let Some(damage) = log.or_else(of_state) else { return false };
        self.ends_with(damage);
        true
    }

    pub fn log(&self) -> Arc<SegLog> {
        self.room.store.clone()
    }

    /// Whether snapshots are refused, because the disk has no room for them.
    pub fn refuse_snapshots(&self, refused: bool) {
        self.room.engines.crowded.store(refused, Ordering::Relaxed);
    }

    /// Removes a part of what an incarnation before this one left, for the room that it takes; says what.
    pub fn drop_some_lost(&self) -> Option<PathBuf> {
        self.folder.drop_some_lost()
    }

    /// Who the folder is: its node and cluster are zero until [`ManyNode::begin`]. `peer` is its incarnation.
    pub fn identity(&self) -> Identity {
        **self.room.shared.identity.load()
    }

    /// The folder is this node's in this cluster from now on, also where it was to be another one; the threads start, and
    /// the port answers.
    pub fn begin(&self, cluster: ClusterId, node: NodeId, service: Arc<dyn CallService>) -> Result<(), StartError> {
        if let Some(certificates) = &self.certificates {
            named(certificates, node, &self.config.advertise_peer)?;
        }
        let before = self.identity();
        let renamed = before.node != NodeId::default() && before.node != node;
        let wished = if renamed && before.wished == NodeId::default() { before.node } else { before.wished };
        let identity = Identity { cluster, node, voted: true, wished, ..before };
        self.folder.save(&identity)?;
        self.room.shared.identity.store(Arc::new(identity));
        let transport = self.transport();
        transport.set_me(crate::transport::Me {
            node,
            peer: identity.peer,
            cluster,
            address: self.config.advertise_peer.clone(),
        });
        transport.set_service(service);
        self.room.start(node, self.config.host);
        let listener = self.listener.lock().take().expect("a node begins once");
        let listening = Listening::start(listener, transport.clone())
            .map_err(|error| StartError::Listen { address: self.config.listen_peer, error })?;
        *self.listening.lock() = Some(listening);
        Ok(())
    }

    /// Puts a group on this node. `changes_held`: see [`Input::HoldChanges`]. The error: state and log do not go together, and
    /// nothing has happened.
    pub fn create(
        &self,
        create: CreateGroup,
        machine: Box<dyn StateMachine>,
        changes_held: bool,
    ) -> Result<GroupHandle, MachineError> {
        check_log(&*self.room.store, &create)?;
        let handle = self.room.declare(create.group, false);
        self.room.create(create, machine, changes_held);
        Ok(handle)
    }

    /// Takes away the logs of groups that nothing here knows of. To be called before any group is created.
    pub fn destroy_others(&self, known: impl Fn(GroupId) -> bool) {
        self.room.store.groups().into_iter().filter(|group| !known(*group)).for_each(|group| self.room.destroy(group));
    }

    /// Takes a group away, with its log. Its state is the caller's to remove, afterwards.
    pub fn destroy(&self, group: GroupId) {
        self.room.destroy(group);
    }

    /// Has a group's peer on this node ask for votes, if it knows of no leader: nobody need wait for a timeout.
    pub fn campaign(&self, group: GroupId) {
        self.room.campaign(group);
    }

    pub fn controls(&self) -> Arc<dyn Controls> {
        Arc::new(ToHost { inbox: self.room.shared.inbox.clone() })
    }

    pub fn handle(&self, group: GroupId) -> Option<GroupHandle> {
        self.room.handle(group)
    }

    pub fn groups(&self) -> Vec<GroupHandle> {
        self.room.handles()
    }

    /// What happens in all groups. A slow listener misses some.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.room.shared.events.subscribe()
    }

    /// Where another node is to be found.
    pub fn set_address(&self, node: NodeId, addresses: Vec<String>) {
        self.transport().set_address(node, addresses);
    }

    pub fn transport(&self) -> &Transport {
        &self.room.shared.transport
    }

    pub fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    pub fn stats(&self) -> Arc<DriverStats> {
        self.room.engines.stats.clone()
    }

    pub fn log_stats(&self) -> storage::log::LogStats {
        self.room.store.stats()
    }

    /// Hands over what this node leads, stops the threads, makes the state durable.
    pub async fn stop(&self) {
        let led = self.groups().into_iter().filter(|group| group.status().role == Role::Leader);
        let led = led.filter(|group| group.membership().voters.len() > 1);
        let mut going = tokio::task::JoinSet::new();
        led.for_each(|group| drop(going.spawn(async move { group.transfer(None).await })));
        let _ = tokio::time::timeout(HANDOVER_TIMEOUT, going.join_all()).await;
        drop(self.listening.lock().take());
        tokio::task::block_in_place(|| self.room.stop());
    }
}

#[cfg(test)]
mod tests {
    use base::PeerId;
    use consensus::Mark;
    use storage::memlog::MemLog;
    use storage::{GroupWrite, HardState, LogBatch};

    use super::*;

    #[test]
    fn a_new_peer_does_not_begin_on_the_log_of_the_one_before_it() {
        let (log, group) = (MemLog::new(), GroupId(7));
        let create =
            |fresh| CreateGroup { group, peer: PeerId(3), mark: Mark::default(), membership: Arc::default(), fresh };
        assert!(check_log(&log, &create(true)).is_ok());
        let hard = Some(HardState { term: 4, vote: 2, commit: 0 });
        let write = |write| log.write(&LogBatch { groups: vec![write] }).unwrap();
        write(GroupWrite { group, hard, ..GroupWrite::default() });
        assert!(check_log(&log, &create(true)).is_err(), "it has voted as somebody else");
        assert!(check_log(&log, &create(false)).is_ok(), "it comes back");
        write(GroupWrite { group, destroy: true, ..GroupWrite::default() });
        assert!(check_log(&log, &create(true)).is_ok());
    }
}
