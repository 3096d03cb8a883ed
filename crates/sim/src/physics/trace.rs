//! The trace: every step of the world as a word and a few numbers. It is always hashed, which is how two runs of a
//! seed are compared, and printed only when asked for.

use base::rng::mix;

/// Prints and hashes what happens.
pub struct Trace {
    hash: u64,
    steps: u64,
    print: bool,
}

impl Trace {
    pub fn new(print: bool) -> Trace {
        Trace { hash: 0, steps: 0, print }
    }

    /// Notes a step. `who` is a node's label, zero for the world itself. The numbers have names, for reading only.
    pub fn note(&mut self, time: u64, who: u64, word: &'static str, numbers: &[(&'static str, u64)]) {
        self.steps += 1;
        self.hash = mix(self.hash ^ mix(time) ^ mix(who).rotate_left(7) ^ base::hash::roll(0, word.as_bytes()));
        for (_, number) in numbers {
            self.hash = mix(self.hash ^ number);
        }
        if self.print {
            let (ms, us) = (time / 1_000_000, time / 1_000 % 1_000);
            print!("{ms:>7}.{us:03} ");
            if who == 0 {
                print!("     -")
            } else {
                print!("node {who}")
            }
            print!(" {word:<18}");
            for (name, number) in numbers {
                if *number > 1 << 32 { print!(" {name}={number:x}") } else { print!(" {name}={number}") }
            }
            println!();
        }
    }

    /// Says something that only readers care about; it is not part of the hash.
    pub fn say(&self, time: u64, who: u64, text: impl FnOnce() -> String) {
        if self.print {
            println!("{:>7}.{:03} node {who}   {}", time / 1_000_000, time / 1_000 % 1_000, text());
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }
}
