//! Bounds what large answers take of memory, however many are asked for at once: few are made at a time, and those that
//! wait for slow clients are counted until their bytes are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use rpc::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::kv::blocking;
use super::status_of;
use crate::error::ApiError;
use crate::read::Leaving;
use crate::read::range::ANSWER_BYTES_MAX;

/// Large answers in the making.
const MADE_AT_ONCE_MAX: usize = 16;
/// Smaller ones are not counted.
const COUNTED_FROM: usize = 256 << 10;

pub struct LargeAnswers {
    making: Arc<Semaphore>,
    held: Arc<AtomicUsize>,
    held_max: usize,
}

/// Leave to make an answer.
pub struct Turn(OwnedSemaphorePermit);

impl Turn {
    /// Makes it, on a thread of its own. Whoever asked for it may leave before it is done: the work is told, and the turn ends
    /// with the work.
    pub async fn make<T: Send + 'static>(
        self,
        work: impl FnOnce(&Leaving) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let leaving = Leaving::default();
        let _staying = leaving.staying();
        blocking(move || {
            let made = work(&leaving);
            drop(self.0);
            made
        })
        .await
    }
}

/// An answer's bytes, counted as long as they live.
struct Held {
    bytes: Bytes,
    held: Arc<AtomicUsize>,
}

impl LargeAnswers {
    pub fn new(held_max: usize) -> LargeAnswers {
        LargeAnswers { making: Arc::new(Semaphore::new(MADE_AT_ONCE_MAX)), held: Arc::default(), held_max }
    }

    /// To be taken when an answer is made, not while a leader is waited for: stale reads need none.
    pub async fn turn(&self) -> Turn {
        Turn(self.making.clone().acquire_owned().await.expect("the semaphore is never closed"))
    }

    /// Counts an answer; refuses it when too much is held already. One alone is never refused.
    pub fn hold(&self, bytes: Bytes) -> Result<Bytes, Status> {
        if bytes.len() < COUNTED_FROM {
            return Ok(bytes);
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(status_of(ApiError::AnswerTooLarge));
        }
        let before = self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        let held = Held { bytes, held: self.held.clone() };
        if before > 0 && before + held.bytes.len() > self.held_max {
            return Err(status_of(ApiError::TooManyRequests));
        }
        Ok(Bytes::from_owner(held))
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that asks and leaves, again and again, has no more made at once than one that stays.
    #[tokio::test]
    async fn a_turn_ends_with_the_work_not_with_who_asked_for_it() {
        let large = LargeAnswers::new(1 << 20);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let turn = large.turn().await;
        let (saw, seen) = std::sync::mpsc::channel();
        let asked = tokio::spawn(turn.make(move |caller| {
            let _ = wait.recv();
            let _ = saw.send(caller.has_left());
            Ok(())
        }));
        tokio::task::yield_now().await;
        asked.abort();
        assert!(asked.await.is_err(), "it has left");
        assert_eq!(large.making.available_permits(), MADE_AT_ONCE_MAX - 1, "its answer is still being made");
        drop(go);
        let turns = large.making.clone().acquire_many_owned(MADE_AT_ONCE_MAX as u32);
        tokio::time::timeout(std::time::Duration::from_secs(10), turns)
            .await
            .expect("it was done")
            .expect("it is open")
            .forget();
        assert!(seen.recv().expect("it was made"), "the work is told");
    }

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let large = LargeAnswers::new(1 << 20);
        let answer = |bytes: usize| large.hold(vec![7; bytes].into());
        let first = answer(600 << 10).unwrap();
        assert!(answer(10).is_ok(), "small ones pass");
        assert!(answer(600 << 10).is_err());
        assert_eq!(large.held.load(Ordering::Relaxed), 600 << 10);
        let part = first.slice(..10);
        drop(first);
        assert!(answer(600 << 10).is_err(), "a part keeps the whole");
        drop(part);
        assert!(answer(4 << 20).is_ok(), "one alone is never refused");
        assert_eq!(large.held.load(Ordering::Relaxed), 0);
    }
}
