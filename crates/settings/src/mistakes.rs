//! All that is wrong with what was given, in one line: whoever mends a file wants to do it once.

/// So many are told; more would hide the first.
const TOLD_MAX: usize = 8;

/// What went wrong so far. Reading goes on behind a mistake.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(Vec<String>);

impl Mistakes {
    /// What was read, unless that was a mistake, which is kept.
    pub fn unless<T>(&mut self, read: Result<T, String>) -> Option<T> {
        read.map_err(|why| self.0.push(why)).ok()
    }

    /// Fails with the mistakes, in the order in which they were met.
    pub fn none(self) -> Result<(), String> {
        let more = self.0.len().saturating_sub(TOLD_MAX);
        let mut told: Vec<String> = self.0.into_iter().take(TOLD_MAX).collect();
        if more > 0 {
            told.push(format!("{more} more"));
        }
        if told.is_empty() { Ok(()) } else { Err(told.join("; and ")) }
    }
}
