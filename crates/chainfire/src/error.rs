//! What may go wrong in the eyes of a client: one enum, and for each error its number, its gRPC status and its text.
//!
//! The text is what etcd's clients match on, so it is exactly etcd's; the gRPC status decides whether a client tries
//! again. The number is ours: an outcome that travels from the state machine to the waiting request carries it
//! ([`consensus::Outcome::code`]), and it means the same on every node of a cluster, of whatever version. Numbers are
//! therefore never reused and never moved; zero is success and stands for no error.
//!
//! Left out: detail. An error that names the failing place is logged where it happens; a client gets what etcd would
//! tell it.

use std::fmt;

/// gRPC status codes, by their numbers on the wire.
pub mod grpc {
    pub const CANCELLED: u32 = 1;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const NOT_FOUND: u32 = 5;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
    pub const DATA_LOSS: u32 = 15;
    pub const UNAUTHENTICATED: u32 = 16;
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $grpc:ident, $text:literal;)*) => {
        /// An error as a client sees it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ApiError {
            $($(#[$doc])* $name = $code,)*
        }

        impl ApiError {
            /// Every error there is, by number.
            pub const ALL: &[ApiError] = &[$(ApiError::$name,)*];

            /// The error with this number; `None` for zero and for numbers of a later version.
            pub fn from_code(code: u32) -> Option<ApiError> {
                match code {
                    $($code => Some(ApiError::$name),)*
                    _ => None,
                }
            }

            /// The gRPC status code.
            pub fn grpc_code(self) -> u32 {
                match self {
                    $(ApiError::$name => grpc::$grpc,)*
                }
            }

            /// The text that clients match on.
            pub fn text(self) -> &'static str {
                match self {
                    $(ApiError::$name => $text,)*
                }
            }
        }
    };
}

errors! {
    EmptyKey = 1, INVALID_ARGUMENT, "etcdserver: key is not provided";
    KeyNotFound = 2, INVALID_ARGUMENT, "etcdserver: key not found";
    ValueProvided = 3, INVALID_ARGUMENT, "etcdserver: value is provided";
    LeaseProvided = 4, INVALID_ARGUMENT, "etcdserver: lease is provided";
    TooManyOps = 5, INVALID_ARGUMENT, "etcdserver: too many operations in txn request";
    DuplicateKey = 6, INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion = 7, INVALID_ARGUMENT, "etcdserver: invalid client api version";
    InvalidSortOption = 8, INVALID_ARGUMENT, "etcdserver: invalid sort option";
    Compacted = 9, OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision = 10, OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision";
    NoSpace = 11, RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded";

    LeaseNotFound = 20, NOT_FOUND, "etcdserver: requested lease not found";
    LeaseExists = 21, FAILED_PRECONDITION, "etcdserver: lease already exists";
    LeaseTtlTooLarge = 22, OUT_OF_RANGE, "etcdserver: too large lease TTL";
    WatchCanceled = 23, CANCELLED, "etcdserver: watch canceled";

    MemberExists = 30, FAILED_PRECONDITION, "etcdserver: member ID already exist";
    PeerUrlExists = 31, FAILED_PRECONDITION, "etcdserver: Peer URLs already exists";
    MemberNotEnoughStarted = 32, FAILED_PRECONDITION,
        "etcdserver: re-configuration failed due to not enough started members";
    MemberBadUrls = 33, INVALID_ARGUMENT, "etcdserver: given member URLs are invalid";
    MemberNotFound = 34, NOT_FOUND, "etcdserver: member not found";
    MemberNotLearner = 35, FAILED_PRECONDITION, "etcdserver: can only promote a learner member";
    LearnerNotReady = 36, FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners = 37, FAILED_PRECONDITION, "etcdserver: too many learner members in cluster";
    ClusterIdMismatch = 38, FAILED_PRECONDITION, "etcdserver: cluster ID mismatch";
    /// Ours: etcd's server ends. As with a server that has ended, a client asks another one.
    Removed = 39, UNAVAILABLE, "etcdserver: this member was removed from its cluster";

    RequestTooLarge = 50, INVALID_ARGUMENT, "etcdserver: request is too large";
    TooManyRequests = 51, RESOURCE_EXHAUSTED, "etcdserver: too many requests";

    RootUserNotExist = 60, FAILED_PRECONDITION, "etcdserver: root user does not exist";
    RootRoleNotExist = 61, FAILED_PRECONDITION, "etcdserver: root user does not have root role";
    UserAlreadyExists = 62, FAILED_PRECONDITION, "etcdserver: user name already exists";
    UserEmpty = 63, INVALID_ARGUMENT, "etcdserver: user name is empty";
    UserNotFound = 64, FAILED_PRECONDITION, "etcdserver: user name not found";
    RoleAlreadyExists = 65, FAILED_PRECONDITION, "etcdserver: role name already exists";
    RoleNotFound = 66, FAILED_PRECONDITION, "etcdserver: role name not found";
    RoleEmpty = 67, INVALID_ARGUMENT, "etcdserver: role name is empty";
    AuthFailed = 68, INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven = 69, INVALID_ARGUMENT, "etcdserver: permission not given";
    PermissionDenied = 70, PERMISSION_DENIED, "etcdserver: permission denied";
    RoleNotGranted = 71, FAILED_PRECONDITION, "etcdserver: role is not granted to the user";
    PermissionNotGranted = 72, FAILED_PRECONDITION, "etcdserver: permission is not granted to the role";
    AuthNotEnabled = 73, FAILED_PRECONDITION, "etcdserver: authentication is not enabled";
    InvalidAuthToken = 74, UNAUTHENTICATED, "etcdserver: invalid auth token";
    InvalidAuthManagement = 75, INVALID_ARGUMENT, "etcdserver: invalid auth management";
    AuthOldRevision = 76, INVALID_ARGUMENT, "etcdserver: revision of auth store is old";

    NoLeader = 90, UNAVAILABLE, "etcdserver: no leader";
    NotLeader = 91, FAILED_PRECONDITION, "etcdserver: not leader";
    LeaderChanged = 92, UNAVAILABLE, "etcdserver: leader changed";
    NotCapable = 93, FAILED_PRECONDITION, "etcdserver: not capable";
    Stopped = 94, UNAVAILABLE, "etcdserver: server stopped";
    Timeout = 95, UNAVAILABLE, "etcdserver: request timed out";
    TimeoutDueToLeaderFail = 96, UNAVAILABLE,
        "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutDueToConnectionLost = 97, UNAVAILABLE,
        "etcdserver: request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex = 98, UNAVAILABLE,
        "etcdserver: request timed out, waiting for the applied index took too long";
    Unhealthy = 99, UNAVAILABLE, "etcdserver: unhealthy cluster";
    Corrupt = 100, DATA_LOSS, "etcdserver: corrupt cluster";
    NotSupportedForLearner = 101, FAILED_PRECONDITION, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee = 102, FAILED_PRECONDITION, "etcdserver: bad leader transferee";
    Canceled = 103, CANCELLED, "etcdserver: request canceled";
    DeadlineExceeded = 104, DEADLINE_EXCEEDED, "etcdserver: context deadline exceeded";

    WrongDowngradeVersionFormat = 120, INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTargetVersion = 121, INVALID_ARGUMENT, "etcdserver: invalid downgrade target version";
    ClusterVersionUnavailable = 122, FAILED_PRECONDITION,
        "etcdserver: cluster version not found during downgrade";
    DowngradeInProcess = 123, FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade = 124, FAILED_PRECONDITION, "etcdserver: no inflight downgrade job";

    /// No client of etcd's takes more in one message.
    AnswerTooLarge = 130, RESOURCE_EXHAUSTED,
        "grpc: trying to send message larger than max (2147483647); ask for fewer keys with a limit";

    /// RangeStream cannot sort.
    StreamCustomSort = 140, UNIMPLEMENTED, "RangeStream does not support custom sort orders";
    /// RangeStream cannot filter.
    StreamRevisionFilter = 141, UNIMPLEMENTED, "RangeStream does not support revision filters";

    /// The command in the log cannot be decoded: its proposer is of another version, or broken.
    MalformedCommand = 200, INVALID_ARGUMENT, "etcdserver: malformed request";
    /// The local store could not be read; what happened stands in the log.
    Storage = 201, INTERNAL, "etcdserver: state store failed";
}

impl ApiError {
    /// The stable number; never zero.
    pub fn code(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for ApiError {}

impl From<storage::EngineError> for ApiError {
    fn from(error: storage::EngineError) -> ApiError {
        tracing::error!(target: "chainfire_storage", "A read of the state failed, why={error} code=CF1006");
        ApiError::Storage
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_unique_and_lead_back() {
        let mut codes = BTreeSet::new();
        let mut texts = BTreeSet::new();
        for error in ApiError::ALL {
            assert_ne!(error.code(), 0);
            assert!(codes.insert(error.code()), "{error:?}");
            assert!(texts.insert(error.text()), "{error:?}");
            assert_eq!(ApiError::from_code(error.code()), Some(*error));
        }
        assert_eq!(ApiError::from_code(0), None);
        assert_eq!(ApiError::from_code(u32::MAX), None);
    }
}
