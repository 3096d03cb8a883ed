//! How answers are shown: as a table for people, as JSON for programs, or plainly, the way shell scripts like it.
//!
//! JSON follows etcdctl: field names of the protocol, bytes in base64. The plain form prints keys and values as they
//! are, byte by byte.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
    Simple,
}

/// Standard output in the form wanted.
pub struct Output {
    /// As asked for; `None` leaves it to the command and to whether a person looks.
    format: Option<Format>,
    terminal: bool,
    out: BufWriter<Stdout>,
}

impl Output {
    pub fn new(format: Option<Format>) -> Output {
        let stdout = io::stdout();
        Output { format, terminal: stdout.is_terminal(), out: BufWriter::new(stdout) }
    }

    /// A table on a terminal, plain otherwise, unless asked for something.
    pub fn format(&self) -> Format {
        self.format.unwrap_or(if self.terminal { Format::Table } else { Format::Simple })
    }

    /// Plain, unless asked for something: for what is read line by line.
    pub fn format_of_lines(&self) -> Format {
        self.format.unwrap_or(Format::Simple)
    }

    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    pub fn line(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        self.out.write_all(text.as_ref())?;
        self.out.write_all(b"\n")
    }

    pub fn table(&mut self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(head.iter().copied());
        for row in rows {
            table.add_row(row);
        }
        writeln!(self.out, "{table}")
    }

    /// Lets the reader see it at once.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
