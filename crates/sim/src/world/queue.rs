//! What may happen.

use base::GroupId;
use bytes::Bytes;

use crate::physics::queue;
pub use crate::physics::queue::Who;

/// The order of it.
pub type Queue = queue::Queue<Happening>;

/// Something that will happen.
#[derive(Debug)]
pub enum Happening {
    /// The host's thread wakes up.
    Turn(Who),
    /// The disk ends what it was writing.
    Synced(Who),
    /// A node whose replica was found wrong stops, to be rebuilt.
    GiveUpFolder(Who),
    /// The applier of a group takes its next step.
    Apply(Who, GroupId),
    /// The flusher of a group looks whether it is time.
    Flush(Who, GroupId),
    /// The dispatcher of a group's watch hub looks at what was published.
    Dispatch(Who, GroupId),
    /// A message's bytes arrive at a node, whatever life it is in.
    Arrive {
        at: usize,
        bytes: Bytes,
    },
    /// A step of a snapshot under way.
    Transfer {
        number: u64,
    },
    /// A client's request arrives at the node it chose.
    Request {
        at: usize,
        seq: u64,
        request: super::requests::Request,
    },
    /// A read that may be done is done, by a worker of the node.
    Read {
        who: Who,
        seq: u64,
    },
    /// The same worker has its answer in hand and looks whether it still may give it.
    ReadDone {
        who: Who,
        seq: u64,
    },
    /// An answer arrives at its client.
    Answer {
        seq: u64,
        answer: super::work::Answer,
    },
    /// A client loses patience.
    GiveUp {
        seq: u64,
    },
    /// A client, having rested, does its next thing.
    Client {
        client: usize,
    },
    /// A watcher drains its stream, or connects again.
    Watch {
        watcher: usize,
    },
    /// The next fault.
    Fault,
    /// The next fault of a disk.
    DiskFault,
    /// A leader's disk has stood still for long: it must not lead any more.
    JudgeStall {
        who: Who,
        group: GroupId,
        term: u64,
    },
    JudgeSlow {
        who: Who,
        group: GroupId,
        term: u64,
    },
    /// A fault ends.
    End(Ending),
    /// A crashed node comes up again.
    Start {
        at: usize,
    },
    /// The operator goes about a membership change, a transfer, or the rebuilding of lost members.
    Operate,
    /// All faults end for good.
    Heal,
    /// After healing: has everything come to rest?
    Settle,
}

/// Which fault ends.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    Partition { number: u64 },
    SlowDisk { at: usize },
    FullDisk { at: usize },
}
