//! The page: `docs/benchmarks.md`, made from the results alone, plus notes that people wrote below a marker.
//!
//! Ratios are Chainfire's figure over etcd's, so that below 1 is better for latency and cost, above 1 for throughput.

use std::fmt::Write;

use base::Moment;

use crate::{
    cluster::Kind,
    compare::{KEYS, VALUE_BYTES},
    load::{self, Figures},
    results::{Compared, Results, of},
};

/// What stands below this line is written by hand and kept.
const MARKER: &str = "<!-- Below this line the page is written by hand; `bench` keeps it. -->";

/// The whole page; `before` is the page as it stands, for its hand-written part.
pub fn page(results: &Results, before: &str) -> String {
    let mut page = String::from("# Benchmarks: Chainfire beside etcd\n\n");
    page.push_str("Written by `make bench` from `benchmarks.json`. Ratios are Chainfire's figure over etcd's.\n\n");
    page.push_str(&conditions(results));
    page.push_str("\n## Goals\n\n");
    page.push_str(&goals(results));
    if let Some(compared) = &results.compare {
        let mut sizes: Vec<usize> = compared.measured.iter().map(|m| m.cell.nodes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for nodes in sizes {
            page.push_str(&matrix(compared, nodes));
        }
    }
    page.push_str(&others(results));
    let _ = write!(page, "\n{MARKER}\n");
    page.push_str(before.split_once(MARKER).map_or("\n", |(_, notes)| notes.strip_prefix('\n').unwrap_or(notes)));
    page
}

/// The goals and how far each is reached, as a table.
pub fn goals(results: &Results) -> String {
    let mut table = String::from("| figure | etcd | Chainfire | ratio | goal | |\n|---|---|---|---|---|---|\n");
    for goal in all_goals(results) {
        let _ = writeln!(table, "{}", goal.row());
    }
    table
}

fn conditions(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = String::from("## Machine and conditions\n\n");
    let _ = writeln!(
        text,
        "- {} × {}, {:.0} GiB of memory, Linux {}, {}; a 4 KiB write and fdatasync takes {:.2} ms (median). Seen {}.",
        machine.processors,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        machine.sync_ms,
        Moment(machine.seen_at).date(),
    );
    if let Some(compared) = &results.compare {
        let versions: Vec<String> =
            compared.versions.iter().map(|(kind, version)| format!("{} {version}", kind.name())).collect();
        let _ = writeln!(
            text,
            "- {}. Same flags, same client, {} alternating round(s) of {} s per workload; medians of the rounds.",
            versions.join(" beside "),
            compared.rounds,
            compared.seconds,
        );
        if compared.etcd_restarted {
            text.push_str(
                "- This etcd is older than 3.5: it was restarted between filling and reading (etcd#12933).\n",
            );
        }
    }
    let connections = |clients| load::connections_for(clients);
    let _ = writeln!(
        text,
        "- {KEYS} keys, values of {VALUE_BYTES} bytes that do not compress, keys chosen uniformly. Each client waits for its \
         answer before it sends again. Clients share connections as in etcd's own benchmark: 1 client on {}, 64 on {}, 1,000 on \
         {}. With three nodes the connections are spread over all of them; a single client talks to the leader.",
        connections(1),
        connections(64),
        connections(1000),
    );
    text.push_str(
        "- Client and servers share the machine's processors. The client is one thread with its own HTTP/2 framing; its cost \
         per operation stands in the last column. Server CPU is user and system time of all nodes together, per operation.\n\
         - Ranges are linearizable. A txn is one compare that holds and one put. A watch operation is one event at one \
         watcher; watchers share ten streams on as many connections, or have a stream each, ten to a connection; one writer puts when all watchers have seen the last \
         event; the latency runs from the sending of the put to the event's arrival.\n",
    );
    text
}

fn matrix(compared: &Compared, nodes: usize) -> String {
    let mut text = format!(
        "\n## {}\n\n",
        match nodes {
            1 => "One node".into(),
            3 => "Three nodes".into(),
            _ => format!("{nodes} nodes"),
        }
    );
    text.push_str(
        "| workload | clients | etcd /s | Chainfire /s | ratio | p50 ms | | ratio | p99 ms | | ratio | server CPU µs | | ratio \
         | client CPU µs | |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut cells: Vec<_> = compared.measured.iter().map(|m| &m.cell).filter(|cell| cell.nodes == nodes).collect();
    cells.sort_by(|a, b| (order(&a.workload), *a).cmp(&(order(&b.workload), *b)));
    cells.dedup();
    for cell in cells {
        let find = |kind| figures(compared, kind, nodes, &cell.workload, cell.clients);
        let (etcd, ours) = (find(Kind::Etcd), find(Kind::Chainfire));
        let both = |pick: fn(&Figures) -> f64| pair(etcd.as_ref().map(pick), ours.as_ref().map(pick));
        let client = |f: &Option<Figures>| f.map_or("–".into(), |f| number(f.client_cpu_us));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            cell.workload,
            cell.clients,
            both(|f| f.per_second),
            both(|f| f.p50_ms),
            both(|f| f.p99_ms),
            both(|f| f.server_cpu_us),
            client(&etcd),
            client(&ours),
        );
    }
    let refused: u64 = compared.measured.iter().map(|m| m.median().refused).sum();
    if refused > 0 {
        let _ =
            writeln!(text, "\n{refused} operations were refused in all rounds together; they are not in the figures.");
    }
    text
}

fn others(results: &Results) -> String {
    let mut text = String::new();
    if !results.memory.is_empty() {
        text.push_str(
            "\n## Memory\n\nOne node. Resident after filling, and after a restart and a read of every key.\n\n",
        );
        text.push_str(
            "| | keys | filled in s | MiB after filling | MiB after reading all | count p50 ms | count p99 ms |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|\n");
        for m in &results.memory {
            let _ = writeln!(
                text,
                "| {} {} | {} × {} B | {} | {} | {} | {} | {} |",
                m.system.name(),
                m.version,
                m.keys,
                m.value_bytes,
                number(m.fill_seconds),
                number(m.filled_mib),
                number(m.read_mib),
                number(m.count_p50_ms),
                number(m.count_p99_ms),
            );
        }
    }
    if !results.open.is_empty() {
        text.push_str("\n## Opening a large store\n\nOne node, files dropped from the kernel's cache, from the start of the \
                       process to the first linearizable read.\n\n| | keys | on disk | filled in s | opens in s |\n|---|---|---|---|---|\n");
        for o in &results.open {
            let _ = writeln!(
                text,
                "| {} {} | {} × {} B | {:.1} GB | {} | {} |",
                o.system.name(),
                o.version,
                o.keys,
                o.value_bytes,
                o.disk_bytes as f64 / 1e9,
                number(o.fill_seconds),
                number(o.seconds),
            );
        }
    }
    if !results.failover.is_empty() {
        text.push_str("\n## Death of the leader\n\nThree nodes, SIGKILL to the leader, puts every 5 ms at both survivors; from the \
                       kill to the acknowledgement of the first put sent after it. Of fewer than a hundred kills the p99 is \
                       the longest.\n\n");
        text.push_str(
            "| | election time-out ms | kills | p50 ms | p99 ms | longest ms | acknowledged | of these lost |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|\n");
        for f in &results.failover {
            let _ = writeln!(
                text,
                "| {} {} | {} | {} | {:.0} | {:.0} | {:.0} | {} | {} |",
                f.system.name(),
                f.version,
                f.election_timeout_ms,
                f.pauses_ms.len(),
                f.quantile_ms(0.5),
                f.quantile_ms(0.99),
                f.quantile_ms(1.0),
                f.acknowledged,
                f.lost,
            );
        }
    }
    if !results.log.is_empty() {
        text.push_str("\n## The log\n\nOne writer, entries of 300 bytes, every batch synced.\n\n");
        text.push_str("| log | batch | entries /s | CPU µs per entry |\n|---|---|---|---|\n");
        for l in &results.log {
            let (rate, cost) = (number(l.entries_per_second), number(l.cpu_us_per_entry));
            let _ = writeln!(text, "| {} | {} | {rate} | {cost} |", l.log, l.batch);
        }
    }
    text
}

/// One line of the goals: two figures and what the second may be.
struct Goal {
    what: &'static str,
    unit: &'static str,
    etcd: Option<f64>,
    ours: Option<f64>,
    wanted: Wanted,
}

enum Wanted {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn row(&self) -> String {
        let wanted = match self.wanted {
            Wanted::RatioAtMost(limit) => format!("≤ {}×", number(limit)),
            Wanted::RatioAtLeast(limit) => format!("≥ {}×", number(limit)),
            Wanted::AtMost(limit) => format!("≤ {} {}", number(limit), self.unit),
        };
        let shown = pair(self.etcd, self.ours);
        format!("| {}, {} | {shown} | {wanted} | {} |", self.what, self.unit, self.verdict())
    }

    fn verdict(&self) -> String {
        let Some(ours) = self.ours else { return "not measured".into() };
        let ratio = self.etcd.filter(|etcd| *etcd > 0.0).map(|etcd| ours / etcd);
        // How many times the limit was taken; above one is missed.
        let used = match self.wanted {
            Wanted::RatioAtMost(limit) => ratio.map(|ratio| ratio / limit),
            Wanted::RatioAtLeast(limit) => ratio.map(|ratio| limit / ratio),
            Wanted::AtMost(limit) => Some(ours / limit),
        };
        match used {
            None => "not measured".into(),
            Some(used) if used <= 1.0 => "reached".into(),
            Some(used) => format!("**missed** by {:.0} %", (used - 1.0) * 100.0),
        }
    }
}

fn all_goals(results: &Results) -> Vec<Goal> {
    let cell = |what, unit, at: (usize, &str, usize), pick: fn(&Figures) -> f64, wanted| {
        let find = |kind| {
            let compared = results.compare.as_ref()?;
            figures(compared, kind, at.0, at.1, at.2).as_ref().map(pick)
        };
        Goal { what, unit, etcd: find(Kind::Etcd), ours: find(Kind::Chainfire), wanted }
    };
    let cpu: fn(&Figures) -> f64 = |f| f.server_cpu_us;
    let rate: fn(&Figures) -> f64 = |f| f.per_second;
    let p50: fn(&Figures) -> f64 = |f| f.p50_ms;
    let p99: fn(&Figures) -> f64 = |f| f.p99_ms;
    let third = 1.0 / 3.0;
    use Wanted::{AtMost, RatioAtLeast, RatioAtMost};
    let put = "put, three nodes, 1,000 clients";
    let get = "linearizable get, three nodes, 1,000 clients";
    let event = "server CPU µs an event";
    let mut goals = vec![
        cell(put, "server CPU µs", (3, "put", 1000), cpu, RatioAtMost(third)),
        cell(put, "per s", (3, "put", 1000), rate, RatioAtLeast(2.0)),
        cell(put, "p99 ms", (3, "put", 1000), p99, RatioAtMost(0.5)),
        cell("put, one node, 1,000 clients", "server CPU µs", (1, "put", 1000), cpu, RatioAtMost(0.6)),
        cell("put, three nodes, one client", "p50 ms", (3, "put", 1), p50, RatioAtMost(0.6)),
        cell(get, "server CPU µs", (3, "linearizable get", 1000), cpu, RatioAtMost(0.5)),
        cell(get, "per s", (3, "linearizable get", 1000), rate, RatioAtLeast(1.7)),
        cell("range of 100, three nodes, 64 clients", "server CPU µs", (3, "range of 100", 64), cpu, RatioAtMost(0.4)),
        cell("txn, three nodes, 64 clients", "server CPU µs", (3, "txn", 64), cpu, RatioAtMost(third)),
        cell(
            "1,000 watchers on ten streams, three nodes",
            event,
            (3, "watch, shared streams", 1000),
            cpu,
            RatioAtMost(third),
        ),
        cell("1,000 watchers on as many, three nodes", event, (3, "watch, own streams", 1000), cpu, RatioAtMost(third)),
    ];
    let memory = |kind| of(&results.memory, kind);
    let open = |kind| of(&results.open, kind).map(|o| o.seconds);
    let pause = |kind| of(&results.failover, kind).map(|f| f.quantile_ms(0.99));
    let pause_max = results.failover.first().map_or(1000.0, |f| f64::from(f.election_timeout_ms)) * 1.5;
    let mut other = |what, unit, find: &dyn Fn(Kind) -> Option<f64>, wanted| {
        goals.push(Goal { what, unit, etcd: find(Kind::Etcd), ours: find(Kind::Chainfire), wanted });
    };
    other("a million keys, after filling", "MiB resident", &|k| memory(k).map(|m| m.filled_mib), RatioAtMost(0.5));
    other("a million keys, after reading all", "MiB resident", &|k| memory(k).map(|m| m.read_mib), RatioAtMost(0.5));
    other("count of a million keys", "ms p99", &|k| memory(k).map(|m| m.count_p99_ms), AtMost(1.0));
    other("a 10 GB store opens", "s", &open, AtMost(5.0));
    other("write gap after SIGKILL of the leader, p99", "ms", &pause, AtMost(pause_max));
    other("the same, beside etcd", "ms", &pause, RatioAtMost(1.0));
    goals
}

fn figures(compared: &Compared, kind: Kind, nodes: usize, workload: &str, clients: usize) -> Option<Figures> {
    let is = |m: &&crate::compare::Measured| {
        m.system == kind && m.cell.nodes == nodes && m.cell.workload == workload && m.cell.clients == clients
    };
    compared.measured.iter().find(is).map(crate::compare::Measured::median)
}

/// The order of a table's lines.
fn order(workload: &str) -> usize {
    let names = ["put", "linearizable get", "serializable get", "range of 100", "range of 1000", "txn"];
    names.iter().position(|name| *name == workload).unwrap_or(names.len())
}

/// Two cells and their ratio.
fn pair(etcd: Option<f64>, ours: Option<f64>) -> String {
    let show = |figure: Option<f64>| figure.map_or("–".into(), number);
    let ratio = match (etcd, ours) {
        (Some(etcd), Some(ours)) if etcd > 0.0 => format!("{:.2}", ours / etcd),
        _ => "–".into(),
    };
    format!("{} | {} | {ratio}", show(etcd), show(ours))
}

/// Three digits, more only before the point, with commas between thousands.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && digit != '-' {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match rest.map(|rest| rest.trim_end_matches('0')) {
        Some(rest) if !rest.is_empty() => format!("{grouped}.{rest}"),
        _ => grouped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Cell, Measured};

    fn compared(etcd: Figures, ours: Figures) -> Results {
        let measured = |system, figures| Measured {
            cell: Cell { nodes: 3, workload: "put".into(), clients: 1000 },
            system,
            rounds: vec![figures],
        };
        let measured = vec![measured(Kind::Etcd, etcd), measured(Kind::Chainfire, ours)];
        let compare =
            Compared { versions: Default::default(), rounds: 1, seconds: 1.0, etcd_restarted: false, measured };
        Results { compare: Some(compare), ..Default::default() }
    }

    #[test]
    fn goals_say_reached_or_by_how_much_missed() {
        let etcd = Figures { per_second: 8000.0, server_cpu_us: 180.0, p99_ms: 200.0, ..Default::default() };
        let ours = Figures { per_second: 20_000.0, server_cpu_us: 66.0, p99_ms: 100.0, ..Default::default() };
        let table = goals(&compared(etcd, ours));
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].ends_with("| 180 | 66 | 0.37 | ≤ 0.333× | **missed** by 10 % |"), "{}", lines[2]);
        assert!(lines[3].ends_with("| 8,000 | 20,000 | 2.50 | ≥ 2× | reached |"), "{}", lines[3]);
        assert!(lines[4].ends_with("| reached |"));
        assert!(lines[5].ends_with("| – | – | – | ≤ 0.6× | not measured |"), "{}", lines[5]);
    }

    #[test]
    fn notes_survive_and_the_rest_is_made_again() {
        let results = compared(Figures::default(), Figures::default());
        let first = page(&results, "");
        let second = page(&results, &format!("{first}\nA profile.\n").replace("Goals", "Gaols"));
        assert_eq!(second, format!("{first}\nA profile.\n"));
    }

    #[test]
    fn numbers_and_dates() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(
            [number(0.0), number(0.25), number(12.34), number(999.9), number(100_000.0)],
            ["0", "0.25", "12.3", "1,000", "100,000"]
        );
        assert_eq!(number(7.0), "7");
    }
}
