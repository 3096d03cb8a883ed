//! The machine. [`Gossip::turn`] takes what came in since the last one and the time, and gives what is to be sent and what
//! has changed. It wants to be called again by [`Gossip::next_due`] at the latest.
//!
//! # Coming late
//! A timer says that an answer has had its time. When this node itself was held up (paused, a busy machine, a laptop
//! asleep), the answers lie unread in its sockets, and to let the timer speak would blame others for that. So a timer that
//! comes late by more than [`SLACK`] is put off by [`GRACE`], once, and all others with it: the machine's own time stands
//! still while the node is held up.
//!
//! # Beside what `foca` does
//! * Suspicion at once when nobody listens at a member's address: the kernel says so when its process has died.
//! * Knocking at members that are down also when no other one is left; `foca` stops all its timers then.
//! * What changes here is announced to every member, not only to some: news of two that cross would reach neither.
//! * A member that comes back against an older self with a clock that was ahead gets ahead of it in larger and larger
//!   steps.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use base::{Rng, Time};
use bytes::Bytes;
use foca::{Config, Foca, NoCustomBroadcast, Notification, PeriodicParams, Runtime, Timer};

use crate::codec::{MESSAGE_BYTES_MAX, Refused, Wire, vet};
use crate::dice::Dice;
use crate::identity::{About, Identity, Role};

/// Members kept, those that are down included.
pub const MEMBERS_MAX: usize = 128;
/// A timer that comes later than this shows that the node itself was held up.
const SLACK: Duration = Duration::from_millis(100);
/// What the others' answers get then to be read.
const GRACE: Duration = Duration::from_millis(150);
/// Members that are down and knocked at, at a time.
const KNOCKS_MAX: usize = 3;
/// A member that refutes the suspicion that nobody listens there is not suspected of it again this soon.
const REFUSED_AGAIN: Duration = Duration::from_secs(2);
/// Being told again this soon that it is down means that a renewal did not win.
const RENEWED_AGAIN: Duration = Duration::from_secs(10);
/// The largest step ahead of an older self: 2^40 ms are 34 years.
const STEP_BITS_MAX: u32 = 40;

/// How soon and how often. The defaults show a killed member as suspect within two seconds, in a cluster of up to three
/// also if its machine went with it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One member is probed per period.
    pub probe_period: Duration,
    /// Others are asked to probe it after this.
    pub probe_patience: Duration,
    /// A suspected member has this long to refute it.
    pub suspicion: Duration,
    /// News go out this often even when nothing is probed.
    pub gossip_period: Duration,
    /// All members are asked this often whom they know.
    pub announce_period: Duration,
    pub knock_period: Duration,
    /// A member that is down, or left, is forgotten after this.
    pub forget_after: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            probe_period: Duration::from_millis(400),
            probe_patience: Duration::from_millis(160),
            suspicion: Duration::from_secs(3),
            gossip_period: Duration::from_millis(200),
            announce_period: Duration::from_secs(10),
            knock_period: Duration::from_secs(2),
            forget_after: Duration::from_secs(24 * 3600),
        }
    }
}

pub enum Input {
    /// A message, from someone who has shown to be its sender.
    Message(Bytes),
    /// Someone was met at an address from the configuration or the membership.
    Met(Identity),
    /// Nobody listens at a member's address.
    Refused { address: Arc<str> },
    /// This node has something else to say of itself.
    Describe(About),
    /// This node stops in good order.
    Leave,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Send { to: Arc<str>, bytes: Bytes },
    Event(Event),
}

/// Another node, as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub identity: Identity,
    pub state: State,
    /// Since when it is in this state, here.
    pub since: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Alive,
    /// It does not answer; it may yet refute it.
    Suspect,
    Down,
    /// It has stopped in good order.
    Left,
}

impl State {
    pub const ALL: [State; 4] = [State::Alive, State::Suspect, State::Down, State::Left];

    pub fn name(self) -> &'static str {
        match self {
            State::Alive => "alive",
            State::Suspect => "suspect",
            State::Down => "down",
            State::Left => "left",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub member: Member,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not known, not alive, or is another process than before.
    Up,
    Suspect,
    Down,
    Left,
    /// It says something else of itself.
    Described,
    /// It was down for long.
    Forgotten,
}

/// Plain counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub received: u64,
    pub sent: u64,
    pub malformed: u64,
    pub other_cluster: u64,
    pub beyond_members_max: u64,
    /// Times that this node was told that it is down, and came back.
    pub renewals: u64,
    /// Times that this node was held up.
    pub late: u64,
}

type Core = Foca<Identity, Wire, Dice, NoCustomBroadcast>;

pub struct Gossip {
    core: Core,
    settings: Settings,
    rng: Rng,
    timers: Timers,
    members: BTreeMap<Arc<str>, Member>,
    /// Who was suspected of late because nobody listens there.
    refused: BTreeMap<Arc<str>, Time>,
    /// When this node was last told that it is down, and how often in short order.
    renewed: (Time, u32),
    left: bool,
    stats: Stats,
}

impl Gossip {
    pub fn new(me: Identity, settings: Settings, seed: u64, now: Time) -> Gossip {
        let mut rng = Rng::new(seed);
        let core = start(me, &settings, &mut rng);
        let mut timers = Timers::default();
        timers.add(now + settings.knock_period, Due::Knock);
        Gossip {
            core,
            settings,
            rng,
            timers,
            members: BTreeMap::new(),
            refused: BTreeMap::new(),
            renewed: (Time::ZERO, 0),
            left: false,
            stats: Stats::default(),
        }
    }

    pub fn me(&self) -> &Identity {
        self.core.identity()
    }

    /// The others, by address.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// When there is something to do, if nothing comes in before.
    pub fn next_due(&self) -> Option<Time> {
        self.timers.next_due().filter(|_| !self.left)
    }

    /// Messages first: what came in may be what a timer waited for.
    pub fn turn(&mut self, now: Time, inputs: Vec<Input>) -> Vec<Output> {
        let mut effects = Effects::default();
        for input in inputs {
            if !self.left {
                self.take(now, input, &mut effects);
            }
        }
        while let Some(due) = self.timers.pop(now, &mut self.stats.late).filter(|_| !self.left) {
            self.run(now, due, &mut effects);
        }
        let mut outputs = effects.outputs;
        self.stats.sent += outputs.len() as u64;
        self.compare(now, &mut outputs);
        outputs
    }

    fn take(&mut self, now: Time, input: Input, effects: &mut Effects) {
        match input {
            Input::Message(bytes) => self.message(&bytes, effects),
            Input::Met(identity) => {
                if identity.is_of(self.me().about.cluster) && identity.address != self.me().address {
                    let _ = self.core.announce(identity, &mut *effects);
                }
            }
            Input::Refused { address } => self.refused(now, &address, effects),
            Input::Describe(about) => self.describe(now, about, effects),
            Input::Leave => {
                let about = About { role: Role::Leaving, ..(*self.me().about).clone() };
                self.describe(now, about, effects);
                let _ = self.core.leave_cluster(&mut *effects);
                self.left = true;
            }
        }
        self.settle(now, effects);
    }

    fn message(&mut self, bytes: &[u8], effects: &mut Effects) {
        let present: BTreeSet<&str> = self.core.iter_membership_state().map(|member| &*member.id().address).collect();
        let mut room = MEMBERS_MAX.saturating_sub(present.len());
        let admits = |identity: &Identity| {
            let admitted = present.contains(&*identity.address) || room > 0;
            room -= usize::from(admitted && !present.contains(&*identity.address));
            admitted
        };
        let vetted = vet(bytes, self.core.identity().about.cluster, admits);
        self.stats.received += 1;
        match vetted {
            // What `foca` objects to (a message to an older self of ours, a late answer) it also leaves without effect.
            Ok(kept) => drop(self.core.handle_data(&kept, &mut *effects)),
            Err(Refused::Malformed) => self.stats.malformed += 1,
            Err(Refused::OtherCluster) => self.stats.other_cluster += 1,
            Err(Refused::Full) => self.stats.beyond_members_max += 1,
        }
    }

    /// The suspicion is `foca`'s from here on: it is told to all, and ends by being refuted or by the next probe's failure.
    fn refused(&mut self, now: Time, address: &str, effects: &mut Effects) {
        let Some(member) = self.members.get(address) else { return };
        self.refused.retain(|_, at| now.since(*at) < REFUSED_AGAIN);
        if member.state != State::Alive || self.refused.contains_key(address) {
            return;
        }
        self.refused.insert(member.identity.address.clone(), now);
        let known = self.core.iter_members().find(|known| known.id() == &member.identity);
        let suspect =
            known.map(|known| foca::Member::new(known.id().clone(), known.incarnation(), foca::State::Suspect));
        let _ = self.core.apply_many(suspect.into_iter(), true, &mut *effects);
        let _ = self.core.gossip(&mut *effects);
    }

    fn describe(&mut self, now: Time, about: About, effects: &mut Effects) {
        let about = about.bounded();
        if *self.me().about == about {
            return;
        }
        let moved = self.me().about.cluster != about.cluster;
        let me = self.me().revised(about);
        if moved {
            self.start_over(now, me, effects);
        } else {
            let _ = self.core.change_identity(me, &mut *effects);
            self.wake(effects);
        }
        self.present(effects);
    }

    /// Shows the others what this node is now. To `foca` all other messages are for one identity of their receiver, and not
    /// for what became of it: of two that change at the same time neither would hear the other, and each would suspect it.
    fn present(&mut self, effects: &mut Effects) {
        let others: Vec<Identity> = self.core.iter_members().map(|member| member.id().clone()).collect();
        for other in others {
            let _ = self.core.announce(other, &mut *effects);
        }
    }

    /// In another cluster, with those that are of it too.
    fn start_over(&mut self, now: Time, me: Identity, effects: &mut Effects) {
        let kept: Vec<_> =
            self.core.iter_membership_state().filter(|known| known.id().is_of(me.about.cluster)).cloned().collect();
        self.core = start(me, &self.settings, &mut self.rng);
        self.timers.keep(|due| matches!(due, Due::Knock));
        effects.timers.clear();
        let _ = self.core.apply_many(kept.into_iter(), false, &mut *effects);
        let _ = self.core.gossip(&mut *effects);
        self.settle(now, effects);
    }

    /// After a change of identity `foca` probes again when it hears from someone; this does not wait for that.
    fn wake(&mut self, effects: &mut Effects) {
        let _ = self.core.apply_many(std::iter::empty(), false, &mut *effects);
    }

    fn run(&mut self, now: Time, due: Due, effects: &mut Effects) {
        match due {
            Due::Core(timer) => drop(self.core.handle_timer(timer, &mut *effects)),
            Due::Knock => {
                let mut down: Vec<Identity> = self
                    .members
                    .values()
                    .filter(|member| member.state == State::Down)
                    .map(|member| member.identity.clone())
                    .collect();
                for _ in 0..KNOCKS_MAX.min(down.len()) {
                    let chosen = down.swap_remove(self.rng.below(down.len() as u64) as usize);
                    let _ = self.core.announce(chosen, &mut *effects);
                }
                self.timers.add(self.timers.time(now) + self.settings.knock_period, Due::Knock);
            }
        }
        self.settle(now, effects);
    }

    /// Takes over the timers that were set, and sees to being told that this node is down.
    fn settle(&mut self, now: Time, effects: &mut Effects) {
        if std::mem::take(&mut effects.renewed) {
            self.stats.renewals += 1;
            let again = if now.since(self.renewed.0) < RENEWED_AGAIN { self.renewed.1 + 1 } else { 0 };
            self.renewed = (now, again);
            // Once may cross with the news of the first; more says that an older self is ahead.
            if again > 1 {
                let step = 1 << (again - 1).min(STEP_BITS_MAX);
                let me = self.me().clone();
                let ahead = Identity { generation: me.generation.saturating_add(step), ..me };
                let _ = self.core.change_identity(ahead, &mut *effects);
            }
            self.wake(effects);
        }
        let time = self.timers.time(now);
        for (timer, after) in effects.timers.drain(..) {
            self.timers.add(time + after, Due::Core(timer));
        }
    }

    /// What has changed since the last turn.
    fn compare(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let mut present = BTreeSet::new();
        let mut changes = Vec::new();
        for known in self.core.iter_membership_state() {
            let address = known.id().address.clone();
            let state = match known.state() {
                foca::State::Alive => State::Alive,
                foca::State::Suspect => State::Suspect,
                foca::State::Down if known.id().about.role == Role::Leaving => State::Left,
                foca::State::Down => State::Down,
            };
            let before = self.members.get(&address);
            if let Some(change) = change(before, known.id(), state) {
                let kept = before.filter(|before| before.state == state && change != Change::Up);
                let since = kept.map_or(now, |before| before.since);
                changes.push((Member { identity: known.id().clone(), state, since }, change));
            }
            present.insert(address);
        }
        let gone = self.members.extract_if(.., |address, _| !present.contains(address));
        changes.extend(gone.map(|(_, member)| (member, Change::Forgotten)));
        for (member, change) in changes {
            if change != Change::Forgotten {
                self.members.insert(member.identity.address.clone(), member.clone());
            }
            // A node that joins is not told of those that were down or gone before.
            outputs.push(Output::Event(Event { member, change }));
        }
    }
}

fn change(before: Option<&Member>, identity: &Identity, state: State) -> Option<Change> {
    let same_process = before.is_some_and(|before| before.identity.generation == identity.generation);
    match (before.map(|before| before.state), state) {
        (Some(State::Alive | State::Suspect), State::Alive) if !same_process => Some(Change::Up),
        (Some(before_state), _) if before_state == state => {
            let same = before.is_some_and(|before| before.identity == *identity);
            (!same).then_some(Change::Described)
        }
        (_, State::Alive) => Some(Change::Up),
        (_, State::Suspect) => Some(Change::Suspect),
        (_, State::Down) => Some(Change::Down),
        (_, State::Left) => Some(Change::Left),
    }
}

fn start(me: Identity, settings: &Settings, rng: &mut Rng) -> Core {
    let some = |number| NonZeroUsize::new(number).expect("not zero");
    let config = Config {
        probe_period: settings.probe_period,
        probe_rtt: settings.probe_patience,
        num_indirect_probes: some(3),
        max_transmissions: NonZeroU8::new(10).expect("not zero"),
        suspect_to_down_after: settings.suspicion,
        remove_down_after: Some(settings.forget_after),
        max_packet_size: some(MESSAGE_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams { frequency: settings.announce_period, num_members: some(1) }),
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: settings.gossip_period, num_members: some(3) }),
    };
    Foca::new(me, config, Dice(rng.fork(0)), Wire)
}

/// What `foca` wants done.
#[derive(Default)]
struct Effects {
    outputs: Vec<Output>,
    timers: Vec<(Timer<Identity>, Duration)>,
    renewed: bool,
}

impl Runtime<Identity> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.renewed |= matches!(notification, Notification::Rejoin(_));
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.outputs.push(Output::Send { to: to.address, bytes: Bytes::copy_from_slice(data) });
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((event, after));
    }
}

enum Due {
    Core(Timer<Identity>),
    Knock,
}

/// By the time at which they are due, on a clock that stands still while the node is held up.
#[derive(Default)]
struct Timers {
    waiting: BTreeMap<(Time, u64), Due>,
    next: u64,
    /// How far the clock is behind.
    behind: Duration,
    /// A timer was put off, and none has been in time since.
    excused: bool,
}

impl Timers {
    fn time(&self, now: Time) -> Time {
        now - self.behind
    }

    fn add(&mut self, at: Time, due: Due) {
        // One per address: a member that goes down often would leave one each time for a day.
        if let Due::Core(Timer::RemoveDown(down)) = &due {
            let same = |due: &Due| matches!(due, Due::Core(Timer::RemoveDown(other)) if other.address == down.address);
            self.waiting.retain(|_, due| !same(due));
        }
        self.waiting.insert((at, self.next), due);
        self.next += 1;
    }

    fn keep(&mut self, wanted: impl Fn(&Due) -> bool) {
        self.waiting.retain(|_, due| wanted(due));
    }

    fn next_due(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|((at, _), _)| *at + self.behind)
    }

    fn pop(&mut self, now: Time, late: &mut u64) -> Option<Due> {
        let first = self.waiting.first_entry()?;
        let (at, _) = *first.key();
        let time = now - self.behind;
        if at > time {
            return None;
        }
        let by = time.since(at);
        if by <= SLACK {
            self.excused = false;
        } else if !self.excused {
            self.excused = true;
            self.behind += by + GRACE;
            *late += 1;
            return None;
        }
        Some(first.remove())
    }
}
