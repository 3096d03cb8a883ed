//! From refusals and errors to gRPC statuses, in etcd's words.

use consensus::Refusal;
use rpc::{Code, Status};

use crate::error::ApiError;

pub fn status_of(error: ApiError) -> Status {
    Status::new(Code::from_number(error.grpc_code()), error.text())
}

pub fn refused(why: Refusal) -> Status {
    status_of(error_of(why))
}

pub fn error_of(why: Refusal) -> ApiError {
    match why {
        Refusal::NoLeader | Refusal::Unanswered | Refusal::NoGroup => ApiError::NoLeader,
        Refusal::Removed => ApiError::Removed,
        Refusal::TimedOut => ApiError::Timeout,
        Refusal::Busy => ApiError::TooManyRequests,
        Refusal::TooLarge => ApiError::RequestTooLarge,
        Refusal::Stopping => ApiError::Stopped,
        Refusal::Damaged => ApiError::Corrupt,
        Refusal::ChangeInFlight | Refusal::Held => ApiError::Unhealthy,
        Refusal::UnknownMember => ApiError::MemberNotFound,
        Refusal::DuplicateMember => ApiError::PeerUrlExists,
        Refusal::LearnerNotReady => ApiError::LearnerNotReady,
        Refusal::NotALearner => ApiError::MemberNotLearner,
        Refusal::TooManyLearners => ApiError::TooManyLearners,
        Refusal::WouldLoseQuorum => ApiError::MemberNotEnoughStarted,
        Refusal::BadTransferee => ApiError::BadLeaderTransferee,
    }
}
