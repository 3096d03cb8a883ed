//! A queue whose reader takes everything that waits at once. The writer wakes the reader only when it sleeps, so a
//! busy queue costs a lock and no system call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub struct Inbox<T> {
    items: Mutex<Vec<T>>,
    sleeping: AtomicBool,
    reader: Mutex<Option<Thread>>,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Inbox { items: Mutex::new(Vec::new()), sleeping: AtomicBool::new(false), reader: Mutex::new(None) }
    }
}

impl<T> Inbox<T> {
    pub fn push(&self, item: T) {
        self.items.lock().push(item);
        self.wake();
    }

    pub fn extend(&self, items: impl IntoIterator<Item = T>) {
        self.items.lock().extend(items);
        self.wake();
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.items.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all that waits; sleeps up to `timeout` when nothing does. For one reader thread only.
    pub fn take(&self, timeout: Duration) -> Vec<T> {
        let waiting = std::mem::take(&mut *self.items.lock());
        if !waiting.is_empty() || timeout.is_zero() {
            return waiting;
        }
        self.reader.lock().get_or_insert_with(std::thread::current);
        let deadline = Instant::now() + timeout;
        loop {
            self.sleeping.store(true, Ordering::SeqCst);
            if self.items.lock().is_empty() {
                std::thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            self.sleeping.store(false, Ordering::SeqCst);
            let waiting = std::mem::take(&mut *self.items.lock());
            // A wake-up may be for something that was taken before: a writer wakes after it has let go of the queue.
            if !waiting.is_empty() || Instant::now() >= deadline {
                return waiting;
            }
        }
    }

    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(reader) = &*self.reader.lock()
        {
            reader.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn nothing_is_lost_and_the_reader_wakes() {
        let inbox = Arc::new(Inbox::default());
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let inbox = inbox.clone();
                std::thread::spawn(move || (0..1000).for_each(|n| inbox.push(writer * 1000 + n)))
            })
            .collect();
        let mut seen = Vec::new();
        while seen.len() < 4000 {
            let batch = inbox.take(Duration::from_secs(10));
            assert!(!batch.is_empty(), "woken for something");
            seen.extend(batch);
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        seen.sort_unstable();
        assert_eq!(seen, (0..4000).collect::<Vec<_>>());
    }
}
