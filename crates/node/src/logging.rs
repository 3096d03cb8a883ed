//! Log lines: `LEVEL target: message, key=value`, one per line on standard output, where journald adds the time and
//! keeps the level (`journalctl -p warning`).
//! The text is the interface: operators grep for it. What is let through can be changed while the node runs.

use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, time::FormatTime, time::SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// Changes the filter of the lines that [`start`] has set going.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Who logs: what this crate says of `chainfire_raft` is `flaredb_raft`'s in a store.
static PROGRAM: OnceLock<&'static str> = OnceLock::new();
const OWN: &str = "chainfire";

/// Starts logging. `program` begins the targets of what this crate and those below say. `level` is a level or a list of
/// `target=level`; an error says what is wrong with it.
pub fn start(program: &'static str, level: &str) -> Result<(), String> {
    // Only the first call comes this far.
    let _ = PROGRAM.set(program);
    let journal = is_journal(libc::STDOUT_FILENO);
    let lines = tracing_subscriber::fmt()
        .with_ansi(std::io::stdout().is_terminal())
        .event_format(Lines { journal })
        .with_env_filter(filter(level)?)
        .with_filter_reloading();
    let handle = lines.reload_handle();
    lines.try_init().map_err(|error| error.to_string())?;
    // Only the first call comes this far.
    let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())));
    Ok(())
}

/// Lets other lines through from now on, as `level` says. On an error all stays as it was.
pub fn set_level(level: &str) -> Result<(), String> {
    let filter = filter(level)?;
    match SET_FILTER.get() {
        Some(set) => set(filter),
        None => Err("logging was not started".to_owned()),
    }
}

/// Why a program ends before it has begun to log: the one line that it says, on standard error. journald gets it as a line
/// of the log, a person as a program's complaint.
pub fn refuse(program: &str, why: &str) {
    if is_journal(libc::STDERR_FILENO) {
        eprintln!("{}ERROR chainfire_start: {why}", mark(tracing::Level::ERROR));
    } else {
        eprintln!("{program}: {why}");
    }
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    let ours = |part: &str| {
        let rest = part.strip_prefix(PROGRAM.get()?)?.strip_prefix('_')?;
        Some(format!("{part},{OWN}_{rest}"))
    };
    let parts: Vec<String> = level.split(',').map(|part| ours(part).unwrap_or_else(|| part.to_owned())).collect();
    EnvFilter::try_new(parts.join(",")).map_err(|error| format!("log level `{level}`: {error}"))
}

/// Whether standard output or error goes to journald: it names the socket that it has made for this process.
fn is_journal(descriptor: libc::c_int) -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for the answer.
    if unsafe { libc::fstat(descriptor, stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded and filled it.
    let stat = unsafe { stat.assume_init() };
    named.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// How journald is told of a line's level; it takes the mark away.
fn mark(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "<3>",
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// journald stamps lines by itself; a terminal or a plain file does not.
struct Lines {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        if self.journal {
            out.write_str(mark(*metadata.level()))?;
        } else {
            SystemTime.format_time(&mut out)?;
            out.write_char(' ')?;
        }
        write!(out, "{} ", metadata.level())?;
        match (PROGRAM.get(), metadata.target().strip_prefix(OWN)) {
            (Some(program), Some(rest)) => write!(out, "{program}{rest}: ")?,
            _ => write!(out, "{}: ", metadata.target())?,
        }
        context.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What a line of each level becomes, the worst first.
    fn lines(journal: bool) -> Vec<String> {
        let written = Collected::default();
        let out = written.clone();
        let lines = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .event_format(Lines { journal })
            .with_writer(move || out.clone());
        tracing::subscriber::with_default(lines.finish(), || {
            tracing::error!(target: "chainfire_x", "Something failed, why={} code=CF0000", "it");
            tracing::warn!(target: "chainfire_x", "Something is odd");
            tracing::info!(target: "chainfire_x", "Something is");
            tracing::debug!(target: "chainfire_x", "Some detail");
            tracing::trace!(target: "chainfire_x", "Some more");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_journal_is_told_of_levels_by_syslogs_numbers() {
        assert_eq!(
            lines(true),
            [
                "<3>ERROR chainfire_x: Something failed, why=it code=CF0000",
                "<4>WARN chainfire_x: Something is odd",
                "<6>INFO chainfire_x: Something is",
                "<7>DEBUG chainfire_x: Some detail",
                "<7>TRACE chainfire_x: Some more",
            ]
        );
    }

    #[test]
    fn elsewhere_lines_begin_with_their_time() {
        for line in lines(false) {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z') && rest.contains(" chainfire_x: Some"), "{line}");
        }
    }
}
