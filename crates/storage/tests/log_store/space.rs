//! Space and company: segments are freed and used again, an idle group does not pin them, work in `idle` comes to an
//! end, and readers are not disturbed meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::GroupId;
use parking_lot::Mutex;
use storage::seglog::disk::{Disk, DiskFile};
use storage::seglog::{SegLog, SegLogOptions};
use storage::{GroupWrite, HardState, LogBatch, LogEntry, LogError, LogStore};

use crate::content::whole;
use crate::disk::SimDisk;
use crate::suite::{batch, entries, entry, small};

/// Appends an entry to group 2 and compacts it closely.
fn busy(index: u64) -> LogBatch {
    let compact_to = Some(index.saturating_sub(5));
    batch(vec![GroupWrite { compact_to, ..entries(2, vec![entry(index, 1, &"x".repeat(100))]) }])
}

fn with_idle_group(disk: &SimDisk) -> SegLog {
    let log = SegLog::open_on(Arc::new(disk.clone()), small()).unwrap();
    let idle = GroupWrite {
        hard: Some(HardState { term: 3, vote: 4, commit: 2 }),
        ..entries(1, vec![entry(1, 1, "keep"), entry(2, 1, "these"), entry(3, 2, "three")])
    };
    log.write(&batch(vec![idle])).unwrap();
    log
}

#[test]
fn an_idle_group_does_not_pin_segments() {
    for idles in [false, true] {
        let disk = SimDisk::new();
        let log = with_idle_group(&disk);
        let mut segments_max = 0;
        for index in 1..2000 {
            log.write(&busy(index)).unwrap();
            if idles {
                log.idle().unwrap();
            }
            segments_max = segments_max.max(log.stats().segments);
        }
        assert!(segments_max <= 5, "{segments_max} segments");
        let files = disk.files();
        assert!(files.len() <= 9, "{:?}", files.keys());
        let before = whole(&log);
        drop(log);
        let log = SegLog::open_on(Arc::new(disk), small()).unwrap();
        assert_eq!(whole(&log), before);
        assert_eq!(log.read(GroupId(1), 1, 4, 99).unwrap()[2], entry(3, 2, "three"));
        assert_eq!(log.state(GroupId(1)).unwrap().hard, HardState { term: 3, vote: 4, commit: 2 });
    }
}

#[test]
fn work_in_idle_comes_to_an_end() {
    let disk = SimDisk::new();
    let log = with_idle_group(&disk);
    for group in 3..200 {
        log.write(&batch(vec![entries(group, vec![entry(1, 1, ""), entry(2, 1, "two")])])).unwrap();
    }
    for index in 1..300 {
        log.write(&busy(index)).unwrap();
    }
    let before = whole(&log);
    for _ in 0..500 {
        log.idle().unwrap();
    }
    let calls = disk.calls();
    for _ in 0..10 {
        log.idle().unwrap();
    }
    assert_eq!(disk.calls(), calls, "idle goes on for ever");
    assert_eq!(whole(&log), before);
}

#[test]
fn a_batch_larger_than_a_segment_is_written() {
    let disk = SimDisk::new();
    let log = with_idle_group(&disk);
    let large = "y".repeat(50_000);
    log.write(&batch(vec![entries(2, vec![entry(1, 1, &large)])])).unwrap();
    log.write(&batch(vec![entries(2, vec![entry(2, 1, "small")])])).unwrap();
    let before = whole(&log);
    let log = SegLog::open_on(Arc::new(disk.restart()), small()).unwrap();
    assert_eq!(whole(&log), before);
    log.write(&batch(vec![GroupWrite { compact_to: Some(2), ..entries(2, vec![]) }])).unwrap();
    for index in 3..200 {
        log.write(&busy(index)).unwrap();
    }
    assert!(log.stats().bytes < 20_000, "{:?}", log.stats());
}

#[test]
fn segments_are_used_again() {
    let disk = SimDisk::new();
    let log = with_idle_group(&disk);
    for index in 1..500 {
        log.write(&busy(index)).unwrap();
    }
    let files = disk.files();
    let numbers = files.keys().filter(|name| name.starts_with("segment-") || name.starts_with("spare-"));
    assert!(numbers.count() <= 7, "{:?}", files.keys());
    // A file in its second life holds more written bytes than its records so far.
    let second = files.iter().filter(|(name, _)| name.starts_with("spare-"));
    assert!(second.clone().count() > 0 && second.clone().all(|(_, bytes)| bytes.starts_with(b"CFR1")));
}

#[test]
fn readers_are_not_disturbed_by_files_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = SegLogOptions { segment_bytes: 16 << 10, ..small() };
    let log = SegLog::open(folder.path(), options).unwrap();
    log.write(&busy(1)).unwrap();
    let stop = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let state = log.state(GroupId(2)).unwrap();
                        match log.read(GroupId(2), state.start.index + 1, state.last + 1, u64::MAX) {
                            Ok(found) => {
                                let whole = |entry: &LogEntry| entry.data.len() == 100 && entry.term == 1;
                                assert!(found.iter().all(whole));
                                reads += 1;
                            }
                            Err(LogError::Compacted { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    reads
                })
            })
            .collect();
        for index in 2..3000 {
            log.write(&busy(index)).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>()
    });
    assert!(reads > 100, "{reads}");
}

#[test]
fn many_idle_entries_are_brought_forward_bit_by_bit() {
    let disk = SimDisk::new();
    let log = SegLog::open_on(Arc::new(disk.clone()), small()).unwrap();
    for index in 1..=200 {
        log.write(&batch(vec![entries(1, vec![entry(index, 1, &format!("{index:050}"))])])).unwrap();
    }
    for index in 1..3000 {
        log.write(&busy(index)).unwrap();
    }
    // About 18 KB are kept; half as much again is slack, and a record each has its share.
    assert!(log.stats().bytes < 60_000, "{:?}", log.stats());
    let before = whole(&log);
    assert_eq!(whole(&SegLog::open_on(Arc::new(disk.restart()), small()).unwrap()), before);
}

type Event = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A disk that lets something happen in the midst of a read.
struct Interrupted {
    disk: SimDisk,
    during_read: Event,
}

struct InterruptedFile {
    file: Arc<dyn DiskFile>,
    during_read: Event,
}

impl Interrupted {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(InterruptedFile { file, during_read: self.during_read.clone() })
    }
}

impl Disk for Interrupted {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.open(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }
}

impl DiskFile for InterruptedFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let event = self.during_read.lock().take();
        if let Some(event) = event {
            event();
        }
        self.file.read_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
}

#[test]
fn a_file_is_not_used_again_while_somebody_reads_it() {
    let during_read = Arc::new(Mutex::new(None));
    let disk = Interrupted { disk: SimDisk::new(), during_read: during_read.clone() };
    let log = Arc::new(SegLog::open_on(Arc::new(disk), small()).unwrap());
    for index in 1..10 {
        log.write(&busy(index)).unwrap();
    }
    let writer = log.clone();
    *during_read.lock() = Some(Box::new(move || (10..200).for_each(|index| writer.write(&busy(index)).unwrap())));
    let found = log.read(GroupId(2), 8, 10, u64::MAX).unwrap();
    assert_eq!(found.iter().map(|entry| entry.index).collect::<Vec<_>>(), [8, 9]);
    assert_eq!(log.state(GroupId(2)).unwrap().last, 199);
}
