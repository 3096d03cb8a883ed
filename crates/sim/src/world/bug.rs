//! Bugs to plant: each breaks one promise of the layers around the production code (disk, network, workers), never
//! that code itself. The simulator has to catch every one of them; that is how it proves that it can see.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The disk answers before it has synced; a crash drops what it had answered for.
    AcknowledgeBeforePersist,
    /// Messages of earlier terms are delivered as if they were of the receiver's term.
    SkipTermCheck,
    /// A node serves reads at an index it was given for an earlier read.
    ReuseReadContext,
    /// One change in a hundred never reaches the watchers.
    DropWatchEvent,
    /// Reads are served under the leader's lease without a look at the clock.
    ServePastLease,
    /// What a node voted is gone when it comes up again, and it thinks that it never voted.
    ForgetVote,
    /// A follower's state machine skips a command now and then.
    SkipCommand,
    /// Nobody looks at how long the disk takes.
    IgnoreStalls,
    /// Nobody looks at whether the others are done with their writes sooner.
    IgnoreSlowDisks,
    /// Nobody is told by the leader that its state is wrong.
    DropVerdict,
    /// A node goes on reading for its clients after its host has quarantined its replica.
    ServeInQuarantine,
}

impl Bug {
    pub const ALL: [Bug; 11] = [
        Bug::AcknowledgeBeforePersist,
        Bug::SkipTermCheck,
        Bug::ReuseReadContext,
        Bug::DropWatchEvent,
        Bug::ServePastLease,
        Bug::ForgetVote,
        Bug::SkipCommand,
        Bug::IgnoreStalls,
        Bug::IgnoreSlowDisks,
        Bug::DropVerdict,
        Bug::ServeInQuarantine,
    ];
}
