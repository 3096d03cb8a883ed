//! The same random operations on both engines, which must never differ in anything that can be read; and the
//! prefix promise, against a model: what a power cut leaves is the state after some prefix of the writes, the
//! same prefix in every family.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Rng;
use storage::engine::View;
use storage::{FamilyId, WriteBatch};

use crate::subject::*;

#[test]
fn both_engines_answer_alike() {
    for seed in 0..16 {
        mirror(seed);
    }
}

fn mirror(seed: u64) {
    let mut rng = Rng::new(seed);
    let (mut rocks, mut mem) = (Rocks::new(), Mem::new());
    let mut earlier: Vec<(Arc<dyn View>, Arc<dyn View>)> = Vec::new();
    for _ in 0..300 {
        match rng.below(100) {
            0..60 => {
                let batch = random_batch(&mut rng);
                rocks.engine().write(&batch).unwrap();
                mem.engine().write(&batch).unwrap();
            }
            60..70 => {
                if earlier.len() == 3 {
                    let (a, b) = earlier.swap_remove(rng.below(3) as usize);
                    assert_eq!(dump(&*a), dump(&*b), "seed {seed}: an earlier view");
                }
                earlier.push((rocks.engine().view(), mem.engine().view()));
            }
            70..75 => {
                rocks.engine().flush().unwrap();
                mem.engine().flush().unwrap();
            }
            75..77 => {
                rocks.engine().reclaim().unwrap();
                mem.engine().reclaim().unwrap();
            }
            77..79 => {
                earlier.clear();
                rocks.engine().flush().unwrap();
                mem.engine().flush().unwrap();
                rocks.cut_power();
                mem.cut_power();
            }
            79..81 => {
                earlier.clear();
                let keys: std::collections::BTreeSet<_> = (0..rng.below(50)).map(|_| random_key(&mut rng)).collect();
                for engine in [rocks.engine(), mem.engine()] {
                    let mut install = engine.begin_install().unwrap();
                    for key in &keys {
                        install.put(INDEX, key, b"installed").unwrap();
                        install.put(DATA, key, key).unwrap();
                    }
                    install.finish().unwrap();
                    engine.commit_install(&mut *install).unwrap();
                }
            }
            _ => {
                let (a, b) = (rocks.engine().view(), mem.engine().view());
                same_reads(&mut rng, &*a, &*b, seed);
            }
        }
    }
    assert_eq!(dump(&*rocks.engine().view()), dump(&*mem.engine().view()), "seed {seed}");
    for (a, b) in earlier {
        assert_eq!(dump(&*a), dump(&*b), "seed {seed}: an earlier view");
    }
}

fn same_reads(rng: &mut Rng, a: &dyn View, b: &dyn View, seed: u64) {
    let family = *rng.pick(&ALL).unwrap();
    let key = random_key(rng);
    assert_eq!(a.get(family, &key).unwrap(), b.get(family, &key).unwrap(), "seed {seed}");
    let (from, to) = (random_key(rng), rng.percent(70).then(|| random_key(rng)));
    let (mut x, mut y) = if rng.percent(50) {
        (a.scan(family, &from, to.as_deref()), b.scan(family, &from, to.as_deref()))
    } else {
        (a.scan_back(family, &from, to.as_deref()), b.scan_back(family, &from, to.as_deref()))
    };
    for _ in 0..20 {
        assert_eq!(x.valid(), y.valid(), "seed {seed}");
        if x.valid() {
            assert_eq!((x.key(), x.value()), (y.key(), y.value()), "seed {seed}");
        }
        if rng.percent(30) {
            let key = random_key(rng);
            x.seek(&key);
            y.seek(&key);
        } else {
            x.advance();
            y.advance();
        }
    }
}

/// Few enough keys that operations meet, in all shapes that matter to an order of bytes.
fn random_key(rng: &mut Rng) -> Vec<u8> {
    (0..rng.below(4)).map(|_| [0, 1, b'a', b'b', 0xFE, 0xFF][rng.below(6) as usize]).collect()
}

fn random_batch(rng: &mut Rng) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for _ in 0..rng.below(8) {
        let family = *rng.pick(&ALL).unwrap();
        match rng.below(10) {
            0..7 => {
                let value = vec![rng.next_u64() as u8; rng.below(600) as usize];
                batch.put(family, &random_key(rng), &value);
            }
            7..9 => batch.delete(family, &random_key(rng)),
            _ => batch.delete_range(family, &random_key(rng), &random_key(rng)),
        }
    }
    batch
}

#[test]
fn a_power_cut_leaves_a_prefix_in_memory() {
    for seed in 0..200 {
        prefix(Mem::new(), seed);
    }
}

#[test]
fn a_power_cut_leaves_a_prefix_in_rocksdb() {
    let mut in_between = 0;
    for seed in 0..12 {
        in_between += prefix(Rocks::new(), seed);
    }
    assert!(in_between > 0, "RocksDB never flushed by itself: the memory tables are too large for this test");
}

/// Returns how many power cuts left a state between the last flush asked for and the last write.
fn prefix(mut subject: impl Subject, seed: u64) -> usize {
    type Model = BTreeMap<(FamilyId, Vec<u8>), Vec<u8>>;
    let mut rng = Rng::new(seed);
    let mut in_between = 0;
    // The states after every write since the last flush.
    let mut history: Vec<Model> = vec![Model::new()];
    for number in 0..400u64 {
        if rng.percent(2) {
            subject.engine().flush().unwrap();
            history.drain(..history.len() - 1);
        }
        if rng.percent(3) {
            subject.cut_power();
            let view = subject.engine().view();
            let left: Model = ALL
                .iter()
                .flat_map(|family| {
                    let pairs = walk(view.scan(*family, b"", None)).into_iter();
                    pairs.map(move |(key, value)| ((*family, key), value))
                })
                .collect();
            let at = history.iter().rposition(|state| *state == left);
            let at = at.unwrap_or_else(|| panic!("seed {seed}: not a prefix, before write {number}"));
            in_between += usize::from(at > 0 && at + 1 < history.len());
            history = vec![left];
        }
        let mut state = history.last().unwrap().clone();
        let mut batch = WriteBatch::new();
        for family in ALL {
            let key = rng.below(20).to_be_bytes().to_vec();
            let value = [&number.to_be_bytes()[..], &vec![9; rng.below(3000) as usize]].concat();
            batch.put(family, b"number", &number.to_be_bytes());
            batch.put(family, &key, &value);
            state.insert((family, b"number".to_vec()), number.to_be_bytes().to_vec());
            state.insert((family, key), value);
        }
        subject.engine().write(&batch).unwrap();
        history.push(state);
        subject.rest(&mut rng);
    }
    in_between
}
