//! A small fuzzer for decoders whose crates stand on RocksDB, which a coverage-guided one would have to compile anew: valid
//! inputs, changed as bits rot and as attackers think, the same ones in every run.
//!
//! Included by tests with `#[path]`, so that no program carries it.

use base::Rng;

/// Numbers at which decoders stumble.
const EDGES: [u64; 10] = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, i64::MAX as u64, u64::MAX];
const CHANGES_MAX: u64 = 5;
const RUN_BYTES_MAX: u64 = 24;

/// Calls `check` with `rounds` changed inputs, which must not panic; the one that does is printed.
pub fn mutate(seed: u64, rounds: u64, inputs: &[Vec<u8>], mut check: impl FnMut(&[u8])) {
    let mut rng = Rng::new(seed);
    for _ in 0..rounds {
        let mut bytes = rng.pick(inputs).expect("there is an input").clone();
        for _ in 0..rng.between(1, CHANGES_MAX) {
            change(&mut bytes, inputs, &mut rng);
        }
        let shown = Shown(bytes);
        check(&shown.0);
    }
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    let end = (at + rng.below(RUN_BYTES_MAX) as usize).min(bytes.len());
    match rng.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        1 if at < bytes.len() => bytes[at] = *rng.pick(&EDGES).expect("there are some") as u8,
        2 => bytes.truncate(at),
        3 => {
            let noise: Vec<u8> = (0..rng.below(RUN_BYTES_MAX)).map(|_| rng.next_u64() as u8).collect();
            bytes.splice(at..at, noise);
        }
        4 => drop(bytes.drain(at..end)),
        5 => {
            let run = bytes[at..end].to_vec();
            bytes.splice(at..at, run);
        }
        6 => {
            let number = rng.pick(&EDGES).expect("there are some").to_le_bytes();
            let width = [2, 4, 8][rng.below(3) as usize];
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        _ => {
            let other = rng.pick(inputs).expect("there is an input");
            let from = rng.below(other.len() as u64 + 1) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// An input on trial.
struct Shown(Vec<u8>);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("the input was {hex}");
        }
    }
}
