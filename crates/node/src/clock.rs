//! The one clock of a node: the machine's boot clock, which goes on while the machine sleeps. A leader that slept must
//! see that its lease is over.

use base::Time;

/// Now.
pub fn now() -> Time {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `spec` is a valid place for the result, and the clock exists on every Linux this runs on.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut spec) };
    assert_eq!(failed, 0, "the boot clock can be read");
    Time::from_nanos(spec.tv_sec as u64 * 1_000_000_000 + spec.tv_nsec as u64)
}

/// Milliseconds since 1970, as far as the machine knows.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// A number that cannot be guessed or met again, from the operating system.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for its length; 8 bytes are never interrupted nor cut short.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 8, "the kernel gives 8 random bytes");
    u64::from_le_bytes(bytes).max(1)
}
