//! Watchers: logical clients that follow keys through the production watch hub of some node, lose their node now and then, and go on elsewhere
//! from the revision they had reached. The production checker listens to every stream.
//!
//! Between a state machine and its hub sits a [`Tap`]. It passes on what is published and writes it down: that is the
//! truth that streams are checked against, and every replica has to publish the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, Rng};
use bytes::Bytes;
use chainfire::event::{EventSink, RevisionEvents};
use chainfire::read::Reader;
use chainfire::watch::check::{StreamCheck, Truth};
use chainfire::watch::{Command, CreateWatch, WatchHub, WatchOptions, WatchStream};
use parking_lot::Mutex;

use super::World;
use super::node::{Node, Share};
use super::plan::MS;
use super::queue::{Happening, Who};
use super::stage::Stage;

/// Sits between a state machine and its hub.
pub struct Tap {
    pub hub: Arc<WatchHub>,
    inner: Mutex<TapInner>,
}

#[derive(Default)]
struct TapInner {
    published: Vec<Arc<Vec<RevisionEvents>>>,
    compacted: Option<i64>,
    anything: bool,
    /// For a planted bug: drops a change now and then.
    dropping: Option<Rng>,
}

impl Tap {
    pub fn new(node: NodeId, dropping: Option<Rng>) -> Tap {
        let options = WatchOptions {
            cluster_id: super::CLUSTER.0,
            member_id: node.0,
            // Small, so that watchers fall behind and read history.
            ring_events_max: 50,
            notes_per_stream_max: 8,
            progress_interval: Duration::from_millis(700),
            ..WatchOptions::default()
        };
        Tap { hub: WatchHub::new(options), inner: Mutex::new(TapInner { dropping, ..TapInner::default() }) }
    }

    /// The store is open.
    pub fn begin(&self, reader: &Reader) {
        let revision = reader.current().revision;
        self.hub.begin(Arc::new(reader.clone()), revision);
    }

    /// Whether there is something for the hub's dispatcher to do since the last call.
    pub fn take_published(&self) -> bool {
        std::mem::take(&mut self.inner.lock().anything)
    }

    pub fn drain(&self) -> (Vec<Arc<Vec<RevisionEvents>>>, Option<i64>) {
        let mut inner = self.inner.lock();
        (std::mem::take(&mut inner.published), inner.compacted.take())
    }
}

impl EventSink for Tap {
    fn publish(&self, batch: Arc<Vec<RevisionEvents>>, revision: i64) {
        let mut inner = self.inner.lock();
        inner.anything = true;
        inner.published.push(batch.clone());
        let mut batch = batch;
        if let Some(rng) = &mut inner.dropping {
            let kept = batch.iter().filter(|_| !rng.percent(1)).cloned().collect();
            batch = Arc::new(kept);
        }
        self.hub.publish(batch, revision);
    }

    fn compacted(&self, revision: i64) {
        let mut inner = self.inner.lock();
        inner.anything = true;
        inner.compacted = Some(revision);
        self.hub.compacted(revision);
    }

    fn reset(&self, revision: i64) {
        let mut inner = self.inner.lock();
        inner.anything = true;
        // Another state takes the place of the one that told of these; whatever was true of it was heard.
        inner.published.clear();
        drop(inner);
        self.hub.reset(revision);
    }
}

/// All watchers, and what really happened.
#[derive(Default)]
pub struct Watchers {
    watchers: Vec<Watcher>,
    pub truth: BTreeMap<GroupId, Truth>,
    pub events: u64,
    pub reconnects: u64,
}

struct Watcher {
    rng: Rng,
    group: GroupId,
    /// How long it sleeps between two looks, at most.
    nap_max: u64,
    /// Of each watch, in the order they are made, what was asked for first, and where to go on.
    wants: Vec<CreateWatch>,
    stream: Option<(Who, WatchStream)>,
    check: StreamCheck,
    /// The watch behind each id of the current stream, and how many were created.
    ids: BTreeMap<i64, usize>,
    created: Vec<usize>,
}

impl Watchers {
    pub fn new(stage: &mut Stage) -> Watchers {
        let count = stage.plan.watchers;
        let watchers = (0..count).map(|watcher| {
            let mut rng = stage.rng.fork(1_000 + watcher as u64);
            let delay = rng.below(2_000 * MS);
            stage.after(delay, Happening::Watch { watcher });
            let wants = (0..rng.between(1, 4)).map(|_| want(&mut rng, stage.plan.keys)).collect();
            Watcher {
                group: GroupId(1 + rng.below(stage.plan.groups)),
                nap_max: if rng.percent(30) { 1_500 * MS } else { 50 * MS },
                rng,
                wants,
                stream: None,
                check: StreamCheck::default(),
                ids: BTreeMap::new(),
                created: Vec::new(),
            }
        });
        Watchers { watchers: watchers.collect(), ..Watchers::default() }
    }

    /// Takes in what a replica published.
    pub fn listen(&mut self, stage: &mut Stage, group: GroupId, tap: &Tap) {
        let truth = self.truth.entry(group).or_default();
        let (published, compacted) = tap.drain();
        for revision in published.iter().flat_map(|batch| batch.iter()) {
            let number = revision.revision;
            let same = truth.revisions(number, number).next().map(|known| known == revision);
            match same {
                Some(true) => {}
                Some(false) => {
                    stage.ledger.fail(|| format!("replicas of group {group} published two things at {number}"));
                }
                None => truth.push(revision.clone()),
            }
        }
        if let Some(compacted) = compacted {
            truth.compact(compacted);
        }
    }
}

/// A watch of one key, some, or all; from the present.
fn want(rng: &mut Rng, keys: u64) -> CreateWatch {
    let one = |rng: &mut Rng| Bytes::from(format!("k{}", rng.below(keys)));
    let (key, range_end) = match rng.below(3) {
        0 => (one(rng), Bytes::new()),
        1 => (Bytes::from_static(b"k"), Bytes::from_static(b"l")),
        _ => (one(rng), Bytes::from_static(b"\0")),
    };
    CreateWatch {
        key,
        range_end,
        start_revision: rng.below(3) as i64,
        prev_kv: rng.percent(50),
        progress_notify: rng.percent(30),
        fragment: rng.percent(30),
        no_put: rng.percent(10),
        no_delete: rng.percent(10),
        ..CreateWatch::default()
    }
}

impl World {
    /// A watcher looks at its stream, or connects.
    pub fn watch(&mut self, watcher: usize) {
        let stage = &mut self.stage;
        let nodes = &mut self.nodes;
        let Watchers { watchers, truth, events, reconnects } = &mut self.watchers;
        let this = &mut watchers[watcher];
        let truth = truth.entry(this.group).or_default();
        let nap = 1 + this.rng.below(if stage.healed { 50 * MS } else { this.nap_max });
        stage.after(nap, Happening::Watch { watcher });

        let bored = !stage.healed && this.rng.percent(1);
        // A node that is no member of the group (any more) has nothing to tell.
        let group = this.group;
        // Nor has one that went astray anything true to tell; nor one that seemed to, for what it has published went
        // unheard, until others have published it.
        let known = truth.revision().max(1);
        let serves = |node: &Node, stage: &Stage| {
            let astray = |share: &Share| stage.ledger.is_astray(group, share.peer);
            let replica = node.running.as_ref().and_then(|running| running.replicas.get(&group));
            let ahead = replica.is_some_and(|replica| replica.reader.current().revision > known);
            let sound = !ahead && !node.disk.shares.get(&group).is_some_and(astray);
            node.enlisted && stage.ledger.is_member(group, node.id) && sound
        };
        let gone =
            this.stream.as_ref().is_none_or(|(who, _)| nodes[who.at].who() != *who || !serves(&nodes[who.at], stage));
        if gone || bored {
            this.disconnect();
            let at = this.rng.below(nodes.len() as u64) as usize;
            if !serves(&nodes[at], stage) || nodes[at].is_paused(stage) {
                return;
            }
            let node = &mut nodes[at];
            let (who, node_id, now) = (node.who(), node.id.0, node.now(stage));
            let Some(replica) = node.replica(this.group) else { return };
            replica.tap.hub.tick(now);
            let Ok(stream) = replica.tap.hub.open() else { return };
            this.connect(who, stream, truth);
            *reconnects += 1;
            stage.note(node_id, "watch-connect", &[("watcher", watcher as u64)]);
        }
        let Some((who, stream)) = &this.stream else { return };
        if nodes[who.at].is_paused(stage) {
            return;
        }
        let now = nodes[who.at].now(stage);
        if let Some(replica) = nodes[who.at].replica(this.group) {
            replica.tap.hub.tick(now);
        }
        let before = this.check.events();
        loop {
            let responses = stream.poll();
            let more = responses.more();
            if responses.is_empty() && !more {
                break;
            }
            for message in responses.into_messages() {
                let known: Vec<i64> = this.check.live().map(|(id, _)| id).collect();
                match this.check.on_response(truth, &message) {
                    Ok(seen) if seen.created => {
                        let want = this.created.pop().unwrap_or_default();
                        if !seen.canceled && !known.contains(&seen.watch_id) {
                            this.ids.insert(seen.watch_id, want);
                        }
                    }
                    Ok(_) => {}
                    Err(violation) => {
                        let at = who.at + 1;
                        stage.ledger.fail(|| format!("watcher {watcher} on node {at}: {violation}"));
                        return;
                    }
                }
            }
        }
        let seen = this.check.events() - before;
        *events += seen;
        if seen > 0 {
            stage.note(who.at as u64 + 1, "watched", &[("watcher", watcher as u64), ("events", seen)]);
        }
        // A watch that was ended (compacted) is made again from the present, with the next connection.
        if this.check.live().count() == 0 && this.created.is_empty() {
            this.disconnect();
        }
    }

    /// After healing and some time: whether all watchers have seen all there was.
    pub fn watchers_caught_up(&self) -> Result<(), String> {
        for (number, watcher) in self.watchers.watchers.iter().enumerate() {
            let Some(truth) = self.watchers.truth.get(&watcher.group) else { continue };
            if watcher.stream.is_none() {
                return Err(format!("watcher {number} has no stream"));
            }
            if let Err(violation) = watcher.check.check_caught_up(truth, truth.revision()) {
                return Err(format!("watcher {number}: {violation}"));
            }
        }
        Ok(())
    }
}

impl Watcher {
    fn connect(&mut self, who: Who, stream: WatchStream, truth: &Truth) {
        self.check = StreamCheck::default();
        self.ids.clear();
        self.created.clear();
        for (number, want) in self.wants.iter().enumerate() {
            let mut request = want.clone();
            if request.start_revision > 0 && request.start_revision < truth.compact_revision() && self.rng.percent(90) {
                request.start_revision = truth.compact_revision();
            }
            if stream.try_submit(Command::Create(request.clone())).is_ok() {
                self.check.on_create(request);
                self.created.insert(0, number);
            }
        }
        self.stream = Some((who, stream));
    }

    /// Remembers where each watch had got to.
    fn disconnect(&mut self) {
        for (id, next) in self.check.live() {
            if let Some(want) = self.ids.get(&id) {
                self.wants[*want].start_revision = next;
            }
        }
        self.ids.clear();
        self.stream = None;
        self.check = StreamCheck::default();
    }
}
