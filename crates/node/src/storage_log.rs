//! What the disk and the engine under a node say of themselves, as lines of the log: log writes that do not return, and what
//! RocksDB met in the background.

use std::sync::Arc;
use std::time::Duration;

use storage::engine::EngineEvent;

use crate::driver::{DriverStats, STALL};

/// How often it is looked.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A duration from here on is told in seconds.
const IN_SECONDS_FROM_MS: u64 = 10_000;

/// Says that a log write does not return, while it does not. When it does, the log writer says so itself.
pub async fn watch_writes(stats: Arc<DriverStats>) {
    let mut said = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let writing = stats.writing_for();
        if writing >= STALL && !said {
            let ms = writing.as_millis();
            tracing::warn!(target: "chainfire_storage", "Disk stall, a log write does not return, duration={ms}ms code=CF4121");
        }
        said = writing >= STALL;
    }
}

/// Puts one event of the engine into the log.
pub fn tell(event: EngineEvent) {
    match event {
        EngineEvent::StallBegan { family, stopped } => {
            tracing::warn!(target: "chainfire_storage", "RocksDB stall began, family={family} stopped={stopped}");
        }
        EngineEvent::StallEnded { duration_ms } => {
            tracing::warn!(target: "chainfire_storage", "RocksDB stall detected, duration={duration_ms}ms");
        }
        EngineEvent::BackgroundError { during, message } => {
            tracing::error!(target: "chainfire_storage", "RocksDB failed, during={during} why={message} code=CF1003");
        }
        EngineEvent::Recovered => tracing::info!(target: "chainfire_storage", "RocksDB recovered"),
        EngineEvent::SlowCompaction { family, duration_ms, bytes_read, bytes_written } => {
            let duration = in_words(duration_ms);
            tracing::warn!(
                target: "chainfire_storage",
                "Compaction is slow, duration={duration} family={family} read={bytes_read} written={bytes_written}"
            );
        }
    }
}

fn in_words(duration_ms: u64) -> String {
    if duration_ms < IN_SECONDS_FROM_MS { format!("{duration_ms}ms") } else { format!("{}s", duration_ms / 1000) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn long_durations_are_told_in_seconds() {
        assert_eq!([0, 9_999, 10_000, 30_700].map(super::in_words), ["0ms", "9999ms", "10s", "30s"]);
    }
}
