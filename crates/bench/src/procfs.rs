//! What the kernel says about a process: processor time and memory, from `/proc/PID`.
//!
//! Processor time comes in clock ticks (10 ms on every Linux we know), so a window of a few seconds is needed for two
//! digits. It is the steady figure of a benchmark: throughput on a shared machine depends on who else runs.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// User and system time of a process, all its threads together, since it started.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks_of(&text).with_context(|| format!("{path} has no processor time"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second()))
}

/// This process's own user and system time.
pub fn own_processor_time() -> Duration {
    // SAFETY: `rusage` is plain numbers, for which zeroes are a value, and the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let span = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}

/// Bytes of a process that lie in memory.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    resident_of(&text).with_context(|| format!("{path} has no VmRSS"))
}

/// The 14th and 15th field. The second is the program's name in brackets and may itself hold blanks and brackets.
fn ticks_of(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn ticks_per_second() -> f64 {
    // SAFETY: takes and returns a number.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_name_with_blanks_and_brackets() {
        let line = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 900 0 0 0 123 77 5 6 20 0 9 0 1000 50000 800 1844";
        assert_eq!(ticks_of(line), Some(200));
        assert_eq!(ticks_of("4242 (cut"), None);
        assert_eq!(ticks_of("4242 (short) S 1 2"), None);
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        assert_eq!(resident_of("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t   2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(resident_of("Name:\tx\n"), None);
    }

    #[test]
    fn own_figures_grow() {
        let before = own_processor_time();
        let mut sum = 0u64;
        while own_processor_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(processor_time(std::process::id()).is_ok());
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
    }
}
