//! How far something long is: a bar on a terminal, a line now and then otherwise, on standard error.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::format::size;

/// Where nobody draws bars, progress is told this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    /// Draws on a terminal only.
    bar: ProgressBar,
    what: &'static str,
    bytes: u64,
    /// Zero: not known.
    bytes_total: u64,
    /// Without a terminal, when it was last told.
    said: Option<Instant>,
}

impl Progress {
    pub fn new(what: &'static str, bytes_total: u64) -> Progress {
        let bar = ProgressBar::new(bytes_total).with_message(what);
        let template = "{msg} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        bar.set_style(style.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        let said = (!stderr().is_terminal()).then(Instant::now);
        Progress { bar, what, bytes: 0, bytes_total, said }
    }

    pub fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.bar.set_position(self.bytes);
        if let Some(said) = &mut self.said
            && said.elapsed() >= SAY_EVERY
        {
            *said = Instant::now();
            match self.bytes_total {
                0 => eprintln!("{}: {}", self.what, size(self.bytes)),
                total => eprintln!("{}: {} of {}", self.what, size(self.bytes), size(total)),
            }
        }
    }

    /// A better estimate than the last.
    pub fn expect(&mut self, bytes_total: u64) {
        self.bytes_total = bytes_total;
        self.bar.set_length(bytes_total);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
