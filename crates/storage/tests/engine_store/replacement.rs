//! A replacement that is interrupted at any point leaves the old content or the new one. The data folder is
//! brought into each state that a kill could leave, and opened.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::Rng;
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, EngineError};

use crate::subject::*;

const INCOMING: &str = "incoming";

/// A folder with old content, foreign files, and a finished install that was never committed, as it lies on disk.
struct Scene {
    dir: tempfile::TempDir,
    old: Vec<Pairs>,
    new: Vec<Pairs>,
}

fn scene() -> Scene {
    let rocks = Rocks::new();
    let live = rocks.dir.path();
    fs::create_dir(live.join("raft")).unwrap();
    for foreign in ["identity", "raft/000001.log", "chainfire.toml"] {
        fs::write(live.join(foreign), foreign).unwrap();
    }
    let engine = rocks.engine();
    for at in 0..500u32 {
        put(&*engine, &[(DATA, &at.to_be_bytes(), &[1; 200]), (INDEX, &at.to_be_bytes(), b"old")]);
    }
    engine.flush().unwrap();
    let old = dump(&*engine.view());
    let mut install = engine.begin_install().unwrap();
    for at in 100..300u32 {
        install.put(INDEX, &at.to_be_bytes(), b"new").unwrap();
        install.put(OLD, &at.to_be_bytes(), &[0xff; 9]).unwrap();
    }
    install.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    copy(live, dir.path());
    engine.commit_install(&mut *install).unwrap();
    let new = dump(&*engine.view());
    assert!(!live.join(INCOMING).exists());
    foreign_files_are_untouched(live);
    assert_ne!(old, new);
    Scene { dir, old, new }
}

impl Scene {
    /// A copy of the folder, changed by `change`.
    fn killed(&self, change: impl FnOnce(&Path)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        change(dir.path());
        dir
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn foreign_files_are_untouched(dir: &Path) {
    for foreign in ["identity", "raft/000001.log", "chainfire.toml"] {
        assert_eq!(fs::read_to_string(dir.join(foreign)).unwrap(), foreign);
    }
}

/// Files of RocksDB directly in `dir`.
fn database_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file() && !path.ends_with("identity") && !path.ends_with("chainfire.toml"));
    files.sort();
    files
}

fn opens_as(dir: &Path, expected: &[Pairs]) {
    for _ in 0..2 {
        let engine = open(dir, &RocksOptions::default());
        assert_eq!(dump(&*engine.view()), expected);
        assert!(!dir.join(INCOMING).exists());
        put(&*engine, &[(DATA, b"", b"writable")]);
    }
    foreign_files_are_untouched(dir);
}

fn decide(dir: &Path) {
    fs::write(dir.join(INCOMING).join("COMPLETE"), "").unwrap();
}

fn delete_old(dir: &Path, count: usize) {
    database_files(dir).into_iter().take(count).for_each(|file| fs::remove_file(file).unwrap());
}

#[test]
fn killed_anywhere_the_old_or_the_new_is_left() {
    let scene = scene();
    let old_files = database_files(scene.dir.path()).len();
    let new_files = database_files(&scene.dir.path().join(INCOMING).join("db")).len();

    opens_as(scene.killed(|_| {}).path(), &scene.old);
    opens_as(scene.killed(|dir| fs::remove_file(dir.join(INCOMING).join("db/CURRENT")).unwrap()).path(), &scene.old);
    for deleted in 0..=old_files {
        let killed = scene.killed(|dir| {
            decide(dir);
            delete_old(dir, deleted);
        });
        opens_as(killed.path(), &scene.new);
    }
    for moved in 0..=new_files {
        let killed = scene.killed(|dir| {
            let incoming = dir.join(INCOMING);
            delete_old(dir, usize::MAX);
            fs::write(incoming.join("MOVING"), "").unwrap();
            for file in database_files(&incoming.join("db")).into_iter().take(moved) {
                fs::rename(&file, dir.join(file.file_name().unwrap())).unwrap();
            }
        });
        opens_as(killed.path(), &scene.new);
    }
    for (gone, decided) in [("db", "MOVING"), ("tables", "MOVING"), ("MOVING", "")] {
        let killed = scene.killed(|dir| {
            let incoming = dir.join(INCOMING);
            delete_old(dir, usize::MAX);
            fs::write(incoming.join("MOVING"), "").unwrap();
            for file in database_files(&incoming.join("db")) {
                fs::rename(&file, dir.join(file.file_name().unwrap())).unwrap();
            }
            if decided.is_empty() {
                fs::remove_file(incoming.join(gone)).unwrap();
            } else {
                fs::remove_dir_all(incoming.join(gone)).unwrap();
            }
        });
        opens_as(killed.path(), &scene.new);
    }
}

#[test]
fn killed_while_receiving_the_old_is_left() {
    let rocks = Rocks::new();
    let engine = rocks.engine();
    put(&*engine, &[(DATA, b"k", b"old")]);
    engine.flush().unwrap();
    let mut install = engine.begin_install().unwrap();
    for at in 0..10_000u32 {
        install.put(DATA, &at.to_be_bytes(), &[3; 300]).unwrap();
    }
    let copied = tempfile::tempdir().unwrap();
    copy(rocks.dir.path(), copied.path());
    let engine = open(copied.path(), &RocksOptions::default());
    assert_eq!(walk(engine.view().scan(DATA, b"", None)), [(b"k".to_vec(), b"old".to_vec())]);
    assert!(!copied.path().join(INCOMING).exists());
    drop(install);
    assert!(!rocks.dir.path().join(INCOMING).exists());
}

#[test]
fn a_commit_waits_for_the_views_of_the_old_content() {
    let rocks = Rocks::new();
    let engine = rocks.engine();
    put(&*engine, &[(DATA, b"k", b"old")]);
    let mut install = engine.begin_install().unwrap();
    install.put(DATA, b"k", b"new").unwrap();
    install.finish().unwrap();
    let view = engine.view();
    std::thread::scope(|scope| {
        let cursor = view.scan(DATA, b"", None);
        assert!(cursor.valid());
        let commit = scope.spawn(|| engine.commit_install(&mut *install));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!commit.is_finished());
        assert!(!cursor.valid(), "who reads is told to end");
        assert!(matches!(cursor.status(), Err(EngineError::Replaced)));
        assert!(matches!(view.get(DATA, b"k"), Err(EngineError::Replaced)));
        drop(cursor);
        drop(view);
        commit.join().unwrap().unwrap();
    });
    assert_eq!(engine.get(DATA, b"k").unwrap().unwrap(), "new");
}

#[test]
fn a_commit_that_is_kept_waiting_changes_nothing_and_is_tried_again() {
    let rocks = Rocks::new();
    let engine = rocks.engine();
    put(&*engine, &[(DATA, b"k", b"old")]);
    let mut install = engine.begin_install().unwrap();
    install.put(DATA, b"k", b"new").unwrap();
    install.finish().unwrap();
    let view = engine.view();
    assert!(matches!(engine.commit_install(&mut *install), Err(EngineError::Held)));
    assert_eq!(engine.get(DATA, b"k").unwrap().unwrap(), "old");
    assert_eq!(view.get(DATA, b"k").unwrap().unwrap(), "old", "it may be read again");
    drop(view);
    engine.commit_install(&mut *install).unwrap();
    assert_eq!(engine.get(DATA, b"k").unwrap().unwrap(), "new");
}

#[test]
fn an_exchange_that_fails_midway_is_finished_by_the_next_opening() {
    let rocks = Rocks::new();
    let engine = rocks.engine();
    put(&*engine, &[(DATA, b"k", b"old")]);
    engine.flush().unwrap();
    let mut install = engine.begin_install().unwrap();
    install.put(DATA, b"k", b"new").unwrap();
    install.finish().unwrap();
    // A folder that bears the name of a file to be moved makes the move fail.
    let obstacle = rocks.dir.path().join("999999.sst");
    fs::write(rocks.dir.path().join(INCOMING).join("db/999999.sst"), "").unwrap();
    fs::create_dir(&obstacle).unwrap();
    assert!(engine.commit_install(&mut *install).is_err());
    assert!(matches!(engine.get(DATA, b"k"), Err(EngineError::Failed(_))));
    assert!(engine.view().get(DATA, b"k").is_err());
    assert!(engine.view().scan(DATA, b"", None).status().is_err());
    assert!(engine.flush().is_err());
    fs::remove_dir(&obstacle).unwrap();
    let engine = open(rocks.dir.path(), &RocksOptions::default());
    assert_eq!(engine.get(DATA, b"k").unwrap().unwrap(), "new");
}

#[test]
fn in_memory_a_power_cut_during_the_commit_leaves_one_or_the_other() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mem = Mem::new();
        let engine = mem.engine();
        put(&*engine, &[(DATA, b"k", b"old")]);
        engine.flush().unwrap();
        put(&*engine, &[(DATA, b"k", b"lost")]);
        let mut install = engine.begin_install().unwrap();
        install.put(DATA, b"k", b"new").unwrap();
        install.finish().unwrap();
        mem.0.cut_power_in_next_commit(&mut Rng::new(seed));
        assert!(engine.commit_install(&mut *install).is_err());
        mem.0.crash();
        seen.insert(engine.get(DATA, b"k").unwrap().unwrap());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["new", "old"]);
}

#[test]
fn a_folder_that_is_open_is_not_opened_twice() {
    let rocks = Rocks::new();
    let twice = RocksEngine::open(rocks.dir.path(), &FAMILIES, &RocksOptions::default());
    assert!(matches!(twice.map(Arc::new), Err(EngineError::Failed(_))));
}
