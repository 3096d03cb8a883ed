//! Work that waits for the disk, done beside the threads that answer: so many pieces at a time, the rest waits in line.

use std::sync::Arc;

use consensus::MachineError;
use node::ground::Later;
use storage::EngineError;
use tokio::sync::{Semaphore, oneshot};

pub struct Blocking {
    aside: Box<Aside>,
    permits: Arc<Semaphore>,
}

/// Does a piece of work where it holds nobody up: [`node::Ground::aside`].
type Aside = dyn Fn(Box<dyn FnOnce() + Send>) -> Later<()> + Send + Sync;

impl Blocking {
    pub fn new(
        pieces_max: usize,
        aside: impl Fn(Box<dyn FnOnce() + Send>) -> Later<()> + Send + Sync + 'static,
    ) -> Blocking {
        Blocking { aside: Box::new(aside), permits: Arc::new(Semaphore::new(pieces_max)) }
    }

    /// Once begun it is done, also if nobody waits for it any more.
    pub async fn run<T, E>(&self, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MachineError> + Send + 'static,
    {
        let stops = || MachineError::Engine(EngineError::Failed("the store stops".to_owned()));
        let Ok(permit) = self.permits.clone().acquire_owned().await else { return Err(stops().into()) };
        let (done, outcome) = oneshot::channel();
        let work = move || {
            let _permit = permit;
            // Nobody may be waiting.
            drop(done.send(work()));
        };
        (self.aside)(Box::new(work)).await;
        outcome.await.unwrap_or_else(|_| Err(stops().into()))
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
        let (blocking, now, most) = (Arc::new(Blocking::new(2, aside)), Arc::new(AtomicUsize::new(0)), Arc::default());
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
}
