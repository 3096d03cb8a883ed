//! Work that waits for the disk, done beside the threads that answer: so many pieces at a time, the rest waits in line. Where
//! clients make the work, the line has an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use consensus::MachineError;
use node::ground::Later;
use storage::EngineError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// So many may be in, and so many wait; who comes then is turned away.
pub struct Line {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    refused: AtomicU64,
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// One that waits, or has given up.
struct Waiting<'a>(&'a Line);

impl Line {
    pub fn new(places: usize, waiting_max: usize) -> Line {
        let (waiting, refused) = (AtomicUsize::new(0), AtomicU64::new(0));
        Line { places: Arc::new(Semaphore::new(places)), waiting, waiting_max, refused }
    }

    /// Takes so many places, as soon as they are free.
    pub async fn enter(&self, places: u32) -> Result<OwnedSemaphorePermit, Full> {
        if let Ok(entered) = self.places.clone().try_acquire_many_owned(places) {
            return Ok(entered);
        }
        let waiting = Waiting(self);
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= self.waiting_max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Full);
        }
        let entered = self.places.clone().acquire_many_owned(places).await;
        drop(waiting);
        Ok(entered.expect("nobody closes it"))
    }

    /// How many were turned away.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

pub struct Blocking {
    aside: Box<Aside>,
    pub line: Line,
}

/// Does a piece of work where it holds nobody up: [`node::Ground::aside`].
type Aside = dyn Fn(Box<dyn FnOnce() + Send>) -> Later<()> + Send + Sync;

impl Blocking {
    pub fn new(line: Line, aside: impl Fn(Box<dyn FnOnce() + Send>) -> Later<()> + Send + Sync + 'static) -> Blocking {
        Blocking { aside: Box::new(aside), line }
    }

    /// For a line without an end. Once begun the work is done, also if nobody waits for it any more.
    pub async fn run<T, E>(&self, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MachineError> + Send + 'static,
    {
        let entered = self.line.enter(1).await.expect("there is room for all who wait");
        self.run_in(entered, work).await
    }

    /// As [`Blocking::run`], if there is room in the line.
    pub async fn run_if_room<T, E>(&self, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MachineError> + From<Full> + Send + 'static,
    {
        let entered = self.line.enter(1).await?;
        self.run_in(entered, work).await
    }

    async fn run_in<T, E>(
        &self,
        entered: OwnedSemaphorePermit,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MachineError> + Send + 'static,
    {
        let (done, outcome) = oneshot::channel();
        let work = move || {
            let _entered = entered;
            // Nobody may be waiting.
            drop(done.send(work()));
        };
        (self.aside)(Box::new(work)).await;
        outcome
            .await
            .unwrap_or_else(|_| Err(MachineError::Engine(EngineError::Failed("the store stops".to_owned())).into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn so_many_at_a_time() {
        let aside = |work| -> Later<()> {
            let done = tokio::task::spawn_blocking(work);
            Box::pin(async move { drop(done.await) })
        };
        let (blocking, now, most) =
            (Arc::new(Blocking::new(Line::new(2, usize::MAX), aside)), Arc::new(AtomicUsize::new(0)), Arc::default());
        let mut all = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (blocking, now, most) = (blocking.clone(), now.clone(), Arc::<AtomicUsize>::clone(&most));
            all.spawn(async move {
                let work = move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, MachineError>(number)
                };
                blocking.run(work).await.unwrap()
            });
        }
        assert_eq!(all.join_all().await.into_iter().sum::<i32>(), 28);
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn who_finds_the_line_full_is_turned_away_and_counted() {
        let line = Arc::new(Line::new(4, 2));
        let entered = line.enter(3).await.unwrap();
        let waits = |line: Arc<Line>| tokio::spawn(async move { line.enter(2).await.map(drop) });
        let waiting = [waits(line.clone()), waits(line.clone())];
        while line.waiting.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!((line.enter(2).await.err(), line.refused()), (Some(Full), 1));
        // One gives up: its place in the line is another one's.
        let [first, second] = waiting;
        first.abort();
        assert!(first.await.is_err());
        let third = waits(line.clone());
        while line.waiting.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        drop(entered);
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (Ok(()), Ok(())));
        assert!(line.enter(4).await.is_ok());
        assert_eq!((line.waiting.load(Ordering::SeqCst), line.refused()), (0, 1));
    }
}
