//! Progress bars, on standard error, so that results on standard output can be piped.

use std::{fmt::Write, time::Duration};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// A bar over a known number of steps, with what is done at the moment beside it.
pub fn steps(count: u64) -> ProgressBar {
    styled(count, "{elapsed_precise} [{bar:30}] {pos}/{len} {msg}")
}

/// A bar over keys, with their rate.
pub fn keys(count: u64, what: &str) -> ProgressBar {
    let bar = styled(count, "{msg} [{bar:30}] {human_pos}/{human_len} keys, {rate}/s, {eta} left");
    bar.set_message(what.to_owned());
    bar
}

fn styled(count: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is one of the two above");
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
        let _ = write!(out, "{:.0}", state.per_sec());
    });
    let bar = ProgressBar::new(count).with_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
