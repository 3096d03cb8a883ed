//! What every Prometheus client tells of its process, under the same names. Read from /proc when the page is asked for; what
//! cannot be read is left out.

use std::fs;

use super::page::Page;

pub fn add(page: &mut Page) {
    if let Some(usage) = Usage::read() {
        page.counter("process_cpu_seconds_total", "CPU time of the process in seconds.", usage.cpu_seconds);
        page.gauge("process_resident_memory_bytes", "Resident memory of the process.", usage.resident_bytes);
        page.gauge("process_virtual_memory_bytes", "Virtual memory of the process.", usage.virtual_bytes);
        page.gauge("process_threads", "Threads of the process.", usage.threads);
        if let Some(start) = usage.start_time_seconds {
            page.gauge("process_start_time_seconds", "When the process began, in seconds since 1970.", start);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open file descriptors.", open.count());
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 {
        page.gauge("process_max_fds", "File descriptors that may be open.", limit.rlim_cur);
    }
}

struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    start_time_seconds: Option<f64>,
}

impl Usage {
    fn read() -> Option<Usage> {
        let boot = fs::read_to_string("/proc/stat").ok();
        let boot = boot.and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()));
        // SAFETY: takes and returns numbers.
        let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
        parse(&fs::read_to_string("/proc/self/stat").ok()?, boot, ticks.max(1) as f64, page.max(1) as u64)
    }
}

/// Fields by proc(5), counted from 3 behind the parenthesis that ends the program's name.
fn parse(stat: &str, boot_seconds: Option<f64>, ticks_per_second: f64, page_bytes: u64) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second;
    Some(Usage {
        cpu_seconds: seconds(field(14)? + field(15)?),
        threads: field(20)?,
        start_time_seconds: boot_seconds.zip(field(22)).map(|(boot, ticks)| boot + seconds(ticks)),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_understood() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 7 0 1000 4096000 25 1844 1 1";
        let usage = parse(stat, Some(1_000.0), 100.0, 4096).unwrap();
        assert_eq!((usage.cpu_seconds, usage.threads, usage.virtual_bytes), (2.0, 7, 4_096_000));
        assert_eq!((usage.resident_bytes, usage.start_time_seconds), (102_400, Some(1_010.0)));
        assert!(parse("42 (cut", None, 100.0, 4096).is_none());
    }

    #[test]
    fn this_process_has_figures() {
        let mut page = Page::default();
        add(&mut page);
        let text = page.text();
        for name in
            ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"]
        {
            assert!(text.contains(&format!("\n{name} ")), "{name} is missing in {text}");
        }
    }
}
