//! `bench load-dpkg`: real data for the demo, this machine's package database.
//!
//! `/var/lib/dpkg/status` is a list of paragraphs, one per package, each a list of `Field: value` lines whose
//! continuations begin with a blank. Every field becomes a key `/dpkg/<package>/<field>`. A package installed for
//! several architectures appears several times; from the second on its name carries the architecture, as dpkg prints it.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use prost::Message;
use proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};

use crate::{
    progress,
    secure::TlsOptions,
    wire::{BODY_BYTES_MAX, Connection, Event},
    workload::TXN,
};

const PUTS_PER_TXN_MAX: usize = 100;
const PUT_OVERHEAD_BYTES: usize = 32;
const IN_FLIGHT: usize = 4;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    pub endpoint: SocketAddr,
    #[arg(long, default_value = "/var/lib/dpkg/status")]
    pub file: PathBuf,
    #[command(flatten)]
    pub tls: TlsOptions,
}

pub async fn run(options: &Options) -> Result<()> {
    let text = fs::read(&options.file).with_context(|| options.file.display().to_string())?;
    let entries: Vec<(String, String)> = parse(&String::from_utf8_lossy(&text)).into_iter().collect();
    let packages = entries.iter().filter(|(key, _)| key.ends_with("/Package")).count();
    let bar = progress::keys(entries.len() as u64, "loading");
    let mut connection = Connection::open(&options.tls.endpoint(options.endpoint)?).await?;
    let mut batches = batches(&entries).into_iter();
    loop {
        while connection.in_flight() < IN_FLIGHT
            && let Some(batch) = batches.next()
        {
            connection.call(TXN, &txn(batch), batch.len() as u32)?;
        }
        if connection.in_flight() == 0 {
            break;
        }
        let mut refused = false;
        let on_event = |event: Event| match event {
            Event::End { succeeded: true, tag } => bar.inc(u64::from(tag)),
            Event::End { .. } => refused = true,
            Event::Message { .. } => (),
        };
        connection.turn(on_event).await?;
        ensure!(!refused, "the server refused a transaction");
    }
    let seconds = bar.elapsed().as_secs_f64();
    bar.finish_and_clear();
    println!("{} keys of {packages} packages loaded in {seconds:.2} s", entries.len());
    Ok(())
}

/// Consecutive entries that fit into one transaction.
fn batches(entries: &[(String, String)]) -> Vec<&[(String, String)]> {
    let mut batches = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (index, (key, value)) in entries.iter().enumerate() {
        let size = key.len() + value.len() + PUT_OVERHEAD_BYTES;
        if index > begin && (bytes + size > BODY_BYTES_MAX || index - begin == PUTS_PER_TXN_MAX) {
            batches.push(&entries[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += size;
    }
    if begin < entries.len() {
        batches.push(&entries[begin..]);
    }
    batches
}

fn txn(entries: &[(String, String)]) -> Vec<u8> {
    let put = |(key, value): &(String, String)| {
        let put = PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    };
    TxnRequest { success: entries.iter().map(put).collect(), ..Default::default() }.encode_to_vec()
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    for paragraph in text.split("\n\n") {
        let fields = fields_of(paragraph);
        let value_of = |wanted: &str| fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
        let Some(package) = value_of("Package") else { continue };
        let mut name = package.to_owned();
        if entries.contains_key(&format!("/dpkg/{name}/Package")) {
            name = format!("{package}:{}", value_of("Architecture").unwrap_or("unknown"));
        }
        for (field, value) in &fields {
            entries.insert(format!("/dpkg/{name}/{field}"), value.clone());
        }
    }
    entries
}

fn fields_of(paragraph: &str) -> Vec<(&str, String)> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for line in paragraph.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim_start());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name, value.trim().to_owned()));
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Package: a\nArchitecture: amd64\nDescription: short\n long\n .\n more\n\n\
        Package: b\nVersion: 1:2\n\nPackage: a\nArchitecture: i386\n\nnonsense\n";

    #[test]
    fn a_key_per_package_and_field() {
        let entries: Vec<_> = parse(TEXT).into_iter().collect();
        let entries: Vec<_> = entries.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let wanted = [
            ("/dpkg/a/Architecture", "amd64"),
            ("/dpkg/a/Description", "short\nlong\n.\nmore"),
            ("/dpkg/a/Package", "a"),
            ("/dpkg/a:i386/Architecture", "i386"),
            ("/dpkg/a:i386/Package", "a"),
            ("/dpkg/b/Package", "b"),
            ("/dpkg/b/Version", "1:2"),
        ];
        assert_eq!(entries, wanted);
    }

    #[test]
    fn batches_keep_order_and_limits() {
        let entries: Vec<_> = (0..950).map(|i| (format!("{i:04}"), "x".repeat(i * 7 % 3000))).collect();
        let batches = batches(&entries);
        assert_eq!(batches.concat(), entries);
        for batch in batches {
            assert!(batch.len() <= PUTS_PER_TXN_MAX && txn(batch).len() <= BODY_BYTES_MAX);
        }
    }
}
