//! The promises of [`Engine`], each as a function that takes any engine.

use std::sync::atomic::{AtomicBool, Ordering};

use storage::engine::EngineEvent;
use storage::{Engine, EngineError, FamilyId, View, WriteBatch};

use crate::subject::*;

macro_rules! both {
    ($($promise:ident),* $(,)?) => {
        mod on_memory { $(#[test] fn $promise() { super::$promise(super::Mem::new()); })* }
        mod on_rocksdb { $(#[test] fn $promise() { super::$promise(super::Rocks::new()); })* }
    };
}

both!(
    a_batch_applies_in_order_and_at_once,
    any_bytes_are_keys_and_values,
    a_view_stays_as_it_was,
    cursors_keep_to_their_bounds,
    a_seek_only_goes_onwards,
    a_range_is_deleted_without_its_end,
    a_range_gets_new_content,
    only_what_was_flushed_survives,
    clean_up_waits_until_the_watermark_is_durable,
    an_install_replaces_everything,
    a_view_of_what_was_just_installed_stays_as_it_was,
    an_install_takes_effect_with_its_commit_only,
    a_faulty_install_is_refused,
    readers_see_whole_batches,
    sizes_are_reported,
);

fn a_batch_applies_in_order_and_at_once(subject: impl Subject) {
    let engine = subject.engine();
    let mut batch = WriteBatch::new();
    batch.put(DATA, b"a", b"1");
    batch.delete(DATA, b"a");
    batch.put(DATA, b"b", b"1");
    batch.put(DATA, b"b", b"2");
    batch.put(INDEX, b"b", b"i");
    batch.delete(INDEX, b"absent");
    engine.write(&batch).unwrap();
    assert_eq!(engine.get(DATA, b"a").unwrap(), None);
    assert_eq!(engine.get(DATA, b"b").unwrap().unwrap(), "2");
    assert_eq!(engine.get(INDEX, b"b").unwrap().unwrap(), "i");
    assert_eq!(engine.get(OLD, b"b").unwrap(), None);
    assert_eq!(engine.view().get(DATA, b"b").unwrap().unwrap(), "2");
    engine.write(&WriteBatch::new()).unwrap();
}

fn any_bytes_are_keys_and_values(mut subject: impl Subject) {
    let large = vec![7; 1 << 20];
    let pairs: [(FamilyId, &[u8], &[u8]); 5] = [
        (DATA, b"", b"under no key"),
        (DATA, b"\0", b""),
        (DATA, b"\0\xff\0", &large),
        (DATA, &[0xff; 300], b"\0"),
        (INDEX, b"\xff\xff", b"last"),
    ];
    put(&*subject.engine(), &pairs);
    for flushed in [false, true] {
        let engine = subject.engine();
        for (family, key, value) in pairs {
            assert_eq!(engine.get(family, key).unwrap().unwrap(), value);
        }
        let keys: Vec<_> = walk(engine.view().scan(DATA, b"", None)).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [&b""[..], b"\0", b"\0\xff\0", &[0xff; 300]]);
        if !flushed {
            engine.flush().unwrap();
            drop(engine);
            subject.cut_power();
        }
    }
}

fn a_view_stays_as_it_was(subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"a", b"1"), (DATA, b"b", b"1"), (INDEX, b"x", b"1")]);
    let view = engine.view();
    let before = dump(&*view);
    let mut cursor = view.scan(DATA, b"", None);
    let mut batch = WriteBatch::new();
    batch.put(DATA, b"a", b"2");
    batch.delete(DATA, b"b");
    batch.put(DATA, b"c", b"2");
    batch.delete_range(INDEX, b"", b"z");
    engine.write(&batch).unwrap();
    assert_eq!(view.get(DATA, b"a").unwrap().unwrap(), "1");
    assert_eq!(view.get(DATA, b"c").unwrap(), None);
    assert_eq!(dump(&*view), before);
    engine.flush().unwrap();
    engine.reclaim().unwrap();
    assert_eq!(dump(&*view), before);
    cursor.advance();
    assert_eq!((cursor.key(), cursor.value()), (&b"b"[..], &b"1"[..]));
    assert_eq!(
        walk(engine.view().scan(DATA, b"", None)),
        [(b"a".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"2".to_vec())]
    );
}

fn cursors_keep_to_their_bounds(subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(INDEX, b"b", b"other")]);
    put(&*engine, &[(DATA, b"a", b""), (DATA, b"b", b""), (DATA, b"bb", b""), (DATA, b"c", b"")]);
    let check = |from: &[u8], to: Option<&[u8]>, expected: &[&[u8]]| {
        let view = engine.view();
        let keys = |pairs: Pairs| -> Vec<Vec<u8>> { pairs.into_iter().map(|(key, _)| key).collect() };
        assert_eq!(keys(walk(view.scan(DATA, from, to))), expected, "{from:?}..{to:?}");
        let mut backwards = keys(walk(view.scan_back(DATA, from, to)));
        backwards.reverse();
        assert_eq!(backwards, expected, "{from:?}..{to:?} backwards");
    };
    for _ in 0..2 {
        check(b"", None, &[b"a", b"b", b"bb", b"c"]);
        check(b"b", None, &[b"b", b"bb", b"c"]);
        check(b"b", Some(b"c"), &[b"b", b"bb"]);
        check(b"b\0", Some(b"c\0"), &[b"bb", b"c"]);
        check(b"", Some(b"a"), &[]);
        check(b"", Some(b""), &[]);
        check(b"d", None, &[]);
        check(b"b", Some(b"b"), &[]);
        check(b"c", Some(b"a"), &[]);
        engine.flush().unwrap();
    }
}

fn a_seek_only_goes_onwards(subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"a", b""), (DATA, b"c", b""), (DATA, b"e", b""), (DATA, b"g", b"")]);
    let view = engine.view();
    let mut cursor = view.scan(DATA, b"a", Some(b"g"));
    cursor.seek(b"b");
    assert_eq!(cursor.key(), b"c");
    cursor.seek(b"a");
    assert_eq!(cursor.key(), b"c");
    cursor.seek(b"e");
    assert_eq!(cursor.key(), b"e");
    cursor.seek(b"f");
    assert!(!cursor.valid());
    cursor.seek(b"a");
    assert!(!cursor.valid());
    cursor.advance();
    assert!(!cursor.valid());
    cursor.status().unwrap();

    let mut cursor = view.scan_back(DATA, b"c", None);
    assert_eq!(cursor.key(), b"g");
    cursor.seek(b"f");
    assert_eq!(cursor.key(), b"e");
    cursor.seek(b"g");
    assert_eq!(cursor.key(), b"e");
    cursor.seek(b"c");
    assert_eq!(cursor.key(), b"c");
    cursor.seek(b"b");
    assert!(!cursor.valid());
    cursor.seek(b"g");
    assert!(!cursor.valid());
    cursor.advance();
    assert!(!cursor.valid());
    cursor.status().unwrap();
}

fn a_range_is_deleted_without_its_end(subject: impl Subject) {
    let engine = subject.engine();
    let keys = |engine: &dyn Engine| -> Vec<u8> {
        walk(engine.view().scan(DATA, b"", None)).into_iter().map(|(key, _)| key[0]).collect()
    };
    put(&*engine, &[(DATA, b"a", b""), (DATA, b"b", b""), (DATA, b"c", b""), (DATA, b"d", b"")]);
    put(&*engine, &[(INDEX, b"b", b"")]);
    engine.flush().unwrap();
    let mut batch = WriteBatch::new();
    batch.delete_range(DATA, b"c", b"a");
    batch.delete_range(DATA, b"a", b"a");
    engine.write(&batch).unwrap();
    assert_eq!(keys(&*engine), b"abcd");
    batch.clear();
    batch.put(DATA, b"bb", b"");
    batch.delete_range(DATA, b"b", b"d");
    batch.put(DATA, b"c", b"again");
    engine.write(&batch).unwrap();
    assert_eq!(keys(&*engine), b"acd");
    assert_eq!(engine.get(DATA, b"c").unwrap().unwrap(), "again");
    assert_eq!(engine.get(DATA, b"b").unwrap(), None);
    assert!(engine.get(INDEX, b"b").unwrap().is_some());
}

fn a_range_gets_new_content(mut subject: impl Subject) {
    let engine = subject.engine();
    let tables = |engine: &dyn Engine, pairs: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = engine.begin_tables(DATA, folder.path())?;
        pairs.iter().try_for_each(|(key, value)| tables.put(key.as_bytes(), value.as_bytes()))?;
        tables.finish().map(|()| folder)
    };
    let replace = |engine: &dyn Engine, pairs: &[(&str, &str)]| {
        engine.replace_range(DATA, b"b", b"d", tables(engine, pairs)?.path())
    };
    let shown = |view: &dyn View| -> String {
        let pairs = walk(view.scan(DATA, b"", None)).into_iter().flat_map(|(key, value)| [key, value]);
        String::from_utf8(pairs.collect::<Vec<_>>().concat()).unwrap()
    };
    put(&*engine, &[(DATA, b"a", b"1"), (DATA, b"b", b"1"), (DATA, b"c", b"1"), (DATA, b"d", b"1")]);
    engine.flush().unwrap();
    put(&*engine, &[(DATA, b"bb", b"2"), (INDEX, b"b", b"2")]);
    let before = engine.view();
    let written = tables(&*engine, &[("b", "3"), ("c", "3")]).unwrap();
    assert_eq!(shown(&*engine.view()), "a1b1bb2c1d1", "nothing is in place");
    assert!(replace(&*engine, &[("c", "3"), ("b", "3")]).is_err(), "the pairs are out of order");
    replace(&*engine, &[("b", "3"), ("bc", "3")]).unwrap();
    assert_eq!(shown(&*engine.view()), "a1b3bc3d1");
    assert_eq!(shown(&*before), "a1b1bb2c1d1");
    assert!(engine.get(INDEX, b"b").unwrap().is_some());
    put(&*engine, &[(DATA, b"bc", b"4"), (DATA, b"a", b"4")]);
    assert_eq!(shown(&*engine.view()), "a4b3bc4d1");
    drop((before, engine));
    subject.cut_power();
    let engine = subject.engine();
    assert_eq!(shown(&*engine.view()), "a1b3bc3d1", "it is durable, and what came after it is not");
    // As often as one likes, from files of an earlier life.
    for _ in 0..2 {
        engine.replace_range(DATA, b"b", b"d", written.path()).unwrap();
        assert_eq!(shown(&*engine.view()), "a1b3c3d1");
        put(&*engine, &[(DATA, b"c", b"4")]);
    }
    drop(engine);
    subject.cut_power();
    drop(written);
    let engine = subject.engine();
    assert_eq!(shown(&*engine.view()), "a1b3c3d1", "the files belong to the engine too");
    replace(&*engine, &[("bb", "5"), ("c", "5")]).unwrap();
    assert_eq!(shown(&*engine.view()), "a1bb5c5d1");
    let mut batch = WriteBatch::new();
    batch.delete(DATA, b"bb");
    batch.delete(DATA, b"c");
    engine.write(&batch).unwrap();
    replace(&*engine, &[]).unwrap();
    drop(engine);
    subject.cut_power();
    let engine = subject.engine();
    assert_eq!(shown(&*engine.view()), "a1d1", "what only looked empty stays so");
    replace(&*engine, &[("bb", "6")]).unwrap();
    assert_eq!(shown(&*engine.view()), "a1bb6d1");
    engine.flush().unwrap();
    engine.reclaim().unwrap();
    assert_eq!(shown(&*engine.view()), "a1bb6d1");
}

fn only_what_was_flushed_survives(mut subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"a", b"1"), (INDEX, b"a", b"1")]);
    assert_eq!(engine.durable_get(DATA, b"a").unwrap(), None);
    engine.flush().unwrap();
    assert_eq!(engine.durable_get(DATA, b"a").unwrap().unwrap(), "1");
    put(&*engine, &[(DATA, b"a", b"2"), (OLD, b"a", b"2")]);
    let mut batch = WriteBatch::new();
    batch.delete(INDEX, b"a");
    engine.write(&batch).unwrap();
    assert_eq!(engine.durable_get(DATA, b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.durable_get(INDEX, b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.durable_get(OLD, b"a").unwrap(), None);
    drop(engine);
    subject.cut_power();
    let engine = subject.engine();
    assert_eq!(engine.get(DATA, b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.get(INDEX, b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.get(OLD, b"a").unwrap(), None);
    put(&*engine, &[(DATA, b"a", b"3")]);
    engine.flush().unwrap();
    engine.flush().unwrap();
    drop(engine);
    subject.cut_power();
    assert_eq!(subject.engine().get(DATA, b"a").unwrap().unwrap(), "3");
}

fn clean_up_waits_until_the_watermark_is_durable(mut subject: impl Subject) {
    let engine = subject.engine();
    let numbered = |number: u64| number.to_be_bytes();
    for number in 0..10 {
        put(&*engine, &[(OLD, &numbered(number), &numbered(number)), (DATA, &numbered(number), &numbered(number))]);
    }
    engine.flush().unwrap();
    engine.set_watermark(4);
    engine.set_watermark(3);
    drop(engine);
    subject.cut_power();
    let engine = subject.engine();
    engine.reclaim().unwrap();
    assert_eq!(walk(engine.view().scan(OLD, b"", None)).len(), 10);
    engine.set_watermark(4);
    engine.set_watermark(3);
    engine.flush().unwrap();
    engine.reclaim().unwrap();
    let left: Vec<_> = walk(engine.view().scan(OLD, b"", None)).into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, (4..10).map(|number| numbered(number).to_vec()).collect::<Vec<_>>());
    assert_eq!(walk(engine.view().scan(DATA, b"", None)).len(), 10);
}

fn an_install_replaces_everything(mut subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"old", b"1"), (DATA, b"both", b"1"), (INDEX, b"old", b"1"), (OLD, b"old", b"1")]);
    engine.flush().unwrap();
    put(&*engine, &[(DATA, b"unflushed", b"1")]);
    for round in 0..3u8 {
        let mut install = engine.begin_install().unwrap();
        for at in 0..1000u32 {
            install.put(INDEX, &at.to_be_bytes(), &[round]).unwrap();
            install.put(DATA, &at.to_be_bytes(), &[round; 100]).unwrap();
        }
        install.put(DATA, b"both", &[round]).unwrap();
        assert!(engine.get(DATA, b"both").unwrap().is_some());
        put(&*engine, &[(DATA, b"meanwhile", b"")]);
        install.finish().unwrap();
        engine.commit_install(&mut *install).unwrap();
        assert_eq!(engine.get(DATA, b"both").unwrap().unwrap(), [round][..]);
        let sizes: Vec<_> = dump(&*engine.view()).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1001, 1000, 0]);
        assert_eq!(engine.durable_get(DATA, b"both").unwrap().unwrap(), [round][..]);
        put(&*engine, &[(OLD, b"later", b"1")]);
    }
    let expected = dump(&*engine.view());
    engine.flush().unwrap();
    drop(engine);
    subject.cut_power();
    assert_eq!(dump(&*subject.engine().view()), expected);

    let engine = subject.engine();
    let mut nothing = engine.begin_install().unwrap();
    nothing.finish().unwrap();
    engine.commit_install(&mut *nothing).unwrap();
    drop(engine);
    subject.cut_power();
    assert_eq!(dump(&*subject.engine().view()), [vec![], vec![], vec![]]);
}

fn a_view_of_what_was_just_installed_stays_as_it_was(subject: impl Subject) {
    let engine = subject.engine();
    let mut install = engine.begin_install().unwrap();
    for key in [&b""[..], b"a", b"b"] {
        install.put(DATA, key, b"installed").unwrap();
    }
    install.finish().unwrap();
    engine.commit_install(&mut *install).unwrap();
    let view = engine.view();
    let before = dump(&*view);
    let mut batch = WriteBatch::new();
    batch.delete(DATA, b"");
    batch.put(DATA, b"a", b"later");
    batch.delete_range(DATA, b"b", b"c");
    engine.write(&batch).unwrap();
    engine.reclaim().unwrap();
    assert_eq!(dump(&*view), before);
    assert_eq!(walk(engine.view().scan(DATA, b"", None)), [(b"a".to_vec(), b"later".to_vec())]);
}

fn an_install_takes_effect_with_its_commit_only(mut subject: impl Subject) {
    let content = [(b"k".to_vec(), b"old".to_vec())];
    put(&*subject.engine(), &[(DATA, b"k", b"old")]);
    subject.engine().flush().unwrap();
    let check = |subject: &dyn Subject| {
        assert_eq!(walk(subject.engine().view().scan(DATA, b"", None)), content);
    };

    let mut finished = subject.engine().begin_install().unwrap();
    finished.put(DATA, b"k", b"new").unwrap();
    finished.finish().unwrap();
    drop(finished);
    check(&subject);
    subject.cut_power();
    check(&subject);

    let engine = subject.engine();
    let mut first = engine.begin_install().unwrap();
    first.put(DATA, b"k", b"first").unwrap();
    let mut second = engine.begin_install().unwrap();
    second.put(DATA, b"k", b"second").unwrap();
    drop(first);
    second.finish().unwrap();
    engine.commit_install(&mut *second).unwrap();
    drop(engine);
    subject.cut_power();
    assert_eq!(subject.engine().get(DATA, b"k").unwrap().unwrap(), "second");
}

fn a_faulty_install_is_refused(subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"k", b"old")]);
    let refused = |result: Result<(), EngineError>| assert!(matches!(result, Err(EngineError::Failed(_))));

    let mut disordered = engine.begin_install().unwrap();
    disordered.put(DATA, b"b", b"").unwrap();
    refused(disordered.put(DATA, b"a", b""));
    refused(disordered.put(DATA, b"c", b""));
    refused(disordered.finish());
    refused(engine.commit_install(&mut *disordered));

    let mut unfinished = engine.begin_install().unwrap();
    unfinished.put(DATA, b"k", b"new").unwrap();
    refused(engine.commit_install(&mut *unfinished));

    let mut overtaken = engine.begin_install().unwrap();
    overtaken.put(DATA, b"k", b"new").unwrap();
    overtaken.finish().unwrap();
    refused(overtaken.put(DATA, b"l", b"new"));
    refused(overtaken.finish());
    let latest = engine.begin_install().unwrap();
    refused(engine.commit_install(&mut *overtaken));
    drop(latest);

    assert_eq!(engine.get(DATA, b"k").unwrap().unwrap(), "old");
    put(&*engine, &[(DATA, b"k", b"newer")]);
    engine.flush().unwrap();
}

fn readers_see_whole_batches(subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"n", &[0; 8]), (INDEX, b"n", &[0; 8]), (OLD, b"n", &[0xff; 8])]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let view = engine.view();
                    let number = |family| {
                        let value = view.get(family, b"n").unwrap().unwrap();
                        u64::from_be_bytes(value[..8].try_into().unwrap())
                    };
                    let seen = number(DATA);
                    assert_eq!(number(INDEX), seen);
                    assert_eq!(view.scan(DATA, b"n", None).value()[..8], seen.to_be_bytes());
                    assert!(seen >= last, "a later view is never older");
                    last = seen;
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                engine.flush().unwrap();
            }
        });
        for number in 1..=3000u64 {
            let value = [&number.to_be_bytes()[..], &[0; 200]].concat();
            put(&*engine, &[(DATA, b"n", &value), (INDEX, b"n", &value)]);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(engine.get(DATA, b"n").unwrap().unwrap()[..8], 3000u64.to_be_bytes());
}

fn sizes_are_reported(subject: impl Subject) {
    let engine = subject.engine();
    put(&*engine, &[(DATA, b"k", &[1; 10_000])]);
    let stats = engine.stats();
    assert!(stats.total_bytes >= 10_000 && stats.memory_bytes >= 10_000, "{stats:?}");
    assert_eq!((stats.stalls, stats.stall_ms), (0, 0));
    engine.flush().unwrap();
    assert!(engine.stats().total_bytes > 0 && engine.stats().live_bytes > 0);
}

#[test]
fn a_reclaim_can_be_cancelled_and_asked_for_again() {
    let rocks = Rocks::new();
    let engine = rocks.rocksdb();
    for at in 0..2000u32 {
        put(&*engine, &[(DATA, &at.to_be_bytes(), &[0; 500])]);
    }
    std::thread::scope(|scope| {
        let reclaim = scope.spawn(|| engine.reclaim());
        while !reclaim.is_finished() {
            engine.cancel_reclaim().unwrap();
        }
        reclaim.join().unwrap().unwrap();
    });
    engine.reclaim().unwrap();
    assert_eq!(walk(engine.view().scan(DATA, b"", None)).len(), 2000);
    // Every compaction counts as slow to this engine.
    let slow = |event: &EngineEvent| matches!(event, EngineEvent::SlowCompaction { family, .. } if family == "data");
    assert!(engine.take_events().iter().any(slow));
    assert!(!engine.take_events().iter().any(slow));
}
