//! Tasks of production code, run one after the other in the order in which they were woken: no runtime, no thread, nothing
//! left to chance. A task lives as long as the process that began it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use node::Later;
use parking_lot::Mutex;

use crate::physics::queue::Who;

#[derive(Default)]
pub struct Tasks {
    tasks: BTreeMap<u64, Task>,
    next: u64,
    ready: Arc<Ready>,
}

struct Task {
    who: Who,
    future: Later<()>,
    waker: Waker,
}

#[derive(Default)]
struct Ready(Mutex<VecDeque<u64>>);

/// Wakes one task.
struct Bell {
    task: u64,
    ready: Arc<Ready>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.0.lock().push_back(self.task);
    }
}

impl Tasks {
    pub fn spawn(&mut self, who: Who, future: Later<()>) {
        self.next += 1;
        let waker = Waker::from(Arc::new(Bell { task: self.next, ready: self.ready.clone() }));
        self.tasks.insert(self.next, Task { who, future, waker });
        self.ready.0.lock().push_back(self.next);
    }

    /// The next task that was woken, with its process.
    pub fn next_ready(&self) -> Option<(u64, Who)> {
        loop {
            let task = self.ready.0.lock().pop_front()?;
            if let Some(found) = self.tasks.get(&task) {
                return Some((task, found.who));
            }
        }
    }

    pub fn run(&mut self, task: u64) {
        let Some(mut running) = self.tasks.remove(&task) else { return };
        let ready = running.future.as_mut().poll(&mut Context::from_waker(&running.waker));
        if ready.is_pending() {
            self.tasks.insert(task, running);
        }
    }

    /// The process is gone.
    pub fn end(&mut self, who: Who) {
        self.tasks.retain(|_, task| task.who != who);
    }
}
