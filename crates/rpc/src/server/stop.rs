//! How all connections of a server learn that it stops.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::stream::Bell;

#[derive(Default)]
pub(super) struct Stop {
    stopping: AtomicBool,
    /// Tasks of HTTP/2 connections.
    bells: Mutex<Vec<Weak<Bell>>>,
    /// Everybody else.
    notify: Notify,
}

impl Stop {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
        for bell in self.bells.lock().drain(..) {
            if let Some(bell) = bell.upgrade() {
                bell.wake();
            }
        }
    }

    /// A connection's task that is to be woken.
    pub(super) fn add(&self, bell: &Arc<Bell>) {
        let mut bells = self.bells.lock();
        if bells.len() == bells.capacity() {
            bells.retain(|bell| bell.strong_count() > 0);
        }
        bells.push(Arc::downgrade(bell));
    }

    /// Ready once the server stops.
    pub(super) async fn stopped(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if !self.is_stopping() {
            notified.await;
        }
    }
}
