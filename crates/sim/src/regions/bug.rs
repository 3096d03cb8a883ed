//! Bugs to plant: each breaks one promise of what lies around the production code (disk, engine, network, what a member of the
//! placement driver has on its disk), or changes what goes into it, never the code itself. The simulator has to catch every
//! one of them; `sim/tests/regions.rs` shows that it does.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The log answers before it has synced.
    AcknowledgeBeforePersist,
    /// What is flushed is not.
    FlushNothing,
    /// Which peers were here and are gone for good is never written down: their ids are free for use again.
    ForgetRetired,
    /// A region that has become part of another one is still on disk.
    KeepMerged,
    /// The flush behind a split, before which nothing of what comes of it may serve, does not happen.
    ServeUnflushedSplits,
    /// A split leaves the region's version as it was.
    SplitKeepsVersion,
    /// A member of the placement driver that starts again has forgotten the ids that were given last.
    IdsTwice,
    /// Reads are answered under a lease without a look at the clock: also by a leader whose lease has run out, as long as it has not
    /// noticed that another one leads. One seed of some hundreds shows it: a client has to read there just then.
    ServePastLease,
    /// One store's state machines skip a command now and then.
    SkipCommand,
    /// Nobody is told to take away what is no member of anything.
    NeverRetire,
    /// A data folder that claims a store's id is taken for that store.
    BelieveImpostors,
    /// One store admits nobody.
    RefuseToAdmit,
}

impl Bug {
    pub const ALL: [Bug; 12] = [
        Bug::AcknowledgeBeforePersist,
        Bug::FlushNothing,
        Bug::ForgetRetired,
        Bug::KeepMerged,
        Bug::ServeUnflushedSplits,
        Bug::SplitKeepsVersion,
        Bug::IdsTwice,
        Bug::ServePastLease,
        Bug::SkipCommand,
        Bug::NeverRetire,
        Bug::BelieveImpostors,
        Bug::RefuseToAdmit,
    ];
}
