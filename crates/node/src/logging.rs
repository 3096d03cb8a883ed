//! Log lines: `LEVEL target: message, key=value`, one per line on standard output, where journald adds the time.
//! The text is the interface: operators grep for it.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, time::FormatTime, time::SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging. `level` is a level or a list of `target=level`; an error says what is wrong with it.
pub fn start(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log level `{level}`: {error}"))?;
    // journald stamps lines by itself; a terminal or a plain file does not.
    let stamped = std::env::var_os("JOURNAL_STREAM").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stdout().is_terminal())
        .event_format(Lines { stamped })
        .try_init()
        .map_err(|error| error.to_string())
}

struct Lines {
    stamped: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.stamped {
            SystemTime.format_time(&mut out)?;
            out.write_char(' ')?;
        }
        let metadata = event.metadata();
        write!(out, "{} {}: ", metadata.level(), metadata.target())?;
        context.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}
