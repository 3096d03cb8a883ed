//! A disk in memory that can fail at any call, be cut from power, and be tampered with.
//!
//! It keeps what the machine shows (*live*) and what would be left without power (*durable*), and what was written but
//! not synced in between, in order. A sync that fails loses what it should have made durable, though the live image
//! goes on showing it, as operating systems do.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use base::Rng;
use parking_lot::Mutex;
use storage::seglog::disk::{Disk, DiskFile};

/// What happens at the chosen call. Calls are counted that change something: writes, syncs, and those on names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails; a write has done part of its work.
    Fails,
    /// The call finds the disk full; a write has done part of its work. Syncs do not look.
    Full,
    /// A write does part of its work and says so. Other calls work.
    Short,
    /// Nothing happens from this call on, as if the machine had stopped.
    Stops,
    /// The first sync from this call on fails, and loses what was to be synced.
    SyncFails,
}

#[derive(Clone, Default)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

#[derive(Clone, Default)]
struct World {
    files: BTreeMap<u64, Image>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    next_file: u64,
    calls: u64,
    fault: Option<(u64, Fault)>,
    /// The planted bug: syncs that do nothing, and say they did.
    ignores_syncs: bool,
    ignores_name_syncs: bool,
    /// A file and a place in it that cannot be read.
    bad_sector: Option<(u64, usize)>,
    /// A file and a place in it that is damaged beneath the cache.
    rot: Option<(u64, usize)>,
}

#[derive(Clone)]
enum NameChange {
    Appears(String, u64),
    Moves(String, String),
    Vanishes(String),
}

#[derive(Clone, Default)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

struct SimFile {
    world: Arc<Mutex<World>>,
    id: u64,
}

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// Lets `fault` happen at the `call`-th call from the disk's beginning, counted from 1.
    pub fn fail_at(&self, call: u64, fault: Fault) {
        self.world.lock().fault = Some((call, fault));
    }

    /// Changes a byte of a file beneath everybody.
    pub fn overwrite(&self, name: &str, at: usize, byte: u8) {
        let mut world = self.world.lock();
        let id = world.names[name];
        let image = world.files.get_mut(&id).expect("a name belongs to a file");
        image.live[at] = byte;
    }

    pub fn ignore_syncs(&self) {
        self.world.lock().ignores_syncs = true;
    }

    pub fn ignore_name_syncs(&self) {
        self.world.lock().ignores_name_syncs = true;
    }

    pub fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// The disk as the next process finds it, the machine running on. A copy: this one stays as it is.
    pub fn restart(&self) -> SimDisk {
        let world = World { fault: None, ..self.world.lock().clone() };
        SimDisk { world: Arc::new(Mutex::new(world)) }
    }

    /// The disk as it is found after a power cut: of what was not synced, any part. A copy.
    pub fn power_cut(&self, rng: &mut Rng) -> SimDisk {
        let mut world = World { fault: None, ..self.world.lock().clone() };
        for image in world.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut image.unsynced) {
                let length = bytes.len() as u64;
                match rng.below(4) {
                    0 => {}
                    1 => put(&mut image.durable, offset, &bytes),
                    2 => put(&mut image.durable, offset, &bytes[..rng.below(length + 1) as usize]),
                    _ => {
                        for (at, piece) in (offset..).step_by(64).zip(bytes.chunks(64)) {
                            if rng.percent(50) {
                                put(&mut image.durable, at, piece);
                            }
                        }
                    }
                }
            }
            image.live = image.durable.clone();
        }
        let kept = rng.below(world.name_changes.len() as u64 + 1) as usize;
        for change in world.name_changes.drain(..).take(kept) {
            change.apply(&mut world.durable_names);
        }
        world.names = world.durable_names.clone();
        SimDisk { world: Arc::new(Mutex::new(world)) }
    }

    /// Names and contents, to be tampered with.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world.lock();
        world.names.iter().map(|(name, id)| (name.clone(), world.files[id].live.clone())).collect()
    }

    /// A disk with these contents, all of them durable.
    pub fn with_files(files: &BTreeMap<String, Vec<u8>>) -> SimDisk {
        let mut world = World::default();
        for (name, bytes) in files {
            world.next_file += 1;
            let image = Image { live: bytes.clone(), durable: bytes.clone(), unsynced: Vec::new() };
            world.files.insert(world.next_file, image);
            world.names.insert(name.clone(), world.next_file);
        }
        world.durable_names = world.names.clone();
        SimDisk { world: Arc::new(Mutex::new(world)) }
    }

    /// Makes a place in a file unreadable for good; what is written there is lost.
    pub fn lose_sector(&self, name: &str, at: usize) {
        let world = &mut *self.world.lock();
        world.bad_sector = Some((world.names[name], at));
    }

    /// Damages a byte that stays whole in the cache.
    pub fn rot(&self, name: &str, at: usize) {
        let world = &mut *self.world.lock();
        world.rot = Some((world.names[name], at));
    }

    /// Changes a byte under the feet of whoever has the disk open.
    pub fn flip(&self, name: &str, at: usize, mask: u8) {
        let world = &mut *self.world.lock();
        let id = world.names[name];
        world.files.get_mut(&id).expect("a named file exists").live[at] ^= mask;
    }
}

impl World {
    /// Counts a call; says what is to go wrong with it.
    fn call(&mut self) -> io::Result<Option<Fault>> {
        self.calls += 1;
        match self.fault {
            Some((at, Fault::Stops)) if self.calls >= at => Err(io::Error::other("the machine has stopped")),
            Some((at, Fault::SyncFails)) if self.calls >= at => Ok(Some(Fault::SyncFails)),
            Some((at, fault)) if self.calls == at => Ok(Some(fault)),
            _ => Ok(None),
        }
    }

    /// A call on names.
    fn name_call(&mut self, may_need_space: bool) -> io::Result<()> {
        match self.call()? {
            Some(Fault::Fails) => Err(io::Error::other("a planted error")),
            Some(Fault::Full) if may_need_space => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn write(&mut self, id: u64, bytes: &[u8], offset: u64) {
        let image = self.files.get_mut(&id).expect("an open file exists");
        put(&mut image.live, offset, bytes);
        image.unsynced.push((offset, bytes.to_vec()));
    }

    fn named(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.world.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.world.lock().named(name)?;
        Ok(Arc::new(SimFile { world: self.world.clone(), id }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let world = &mut *self.world.lock();
        world.name_call(true)?;
        world.next_file += 1;
        let id = world.next_file;
        world.files.insert(id, Image::default());
        world.change_name(NameChange::Appears(name.to_owned(), id));
        Ok(Arc::new(SimFile { world: self.world.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let world = &mut *self.world.lock();
        world.name_call(true)?;
        world.named(from)?;
        world.change_name(NameChange::Moves(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let world = &mut *self.world.lock();
        world.name_call(false)?;
        world.named(name)?;
        world.change_name(NameChange::Vanishes(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let world = &mut *self.world.lock();
        match world.call()? {
            Some(Fault::Fails | Fault::SyncFails) => return Err(io::Error::other("a planted error")),
            _ if world.ignores_name_syncs => return Ok(()),
            _ => {}
        }
        for change in std::mem::take(&mut world.name_changes) {
            change.apply(&mut world.durable_names);
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.world.lock();
        let wanted = offset as usize..offset as usize + into.len();
        if world.bad_sector.is_some_and(|(file, at)| file == self.id && wanted.contains(&at)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let rest = world.files[&self.id].live.get(offset as usize..).unwrap_or(&[]);
        let bytes = rest.len().min(into.len());
        into[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let world = &mut *self.world.lock();
        let part = bytes.len() / 2;
        match world.call()? {
            Some(Fault::Fails) => {
                world.write(self.id, &bytes[..part], offset);
                Err(io::Error::other("a planted error"))
            }
            Some(Fault::Full) => {
                world.write(self.id, &bytes[..part], offset);
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(Fault::Short) if part > 0 => {
                world.write(self.id, &bytes[..part], offset);
                Ok(part)
            }
            _ => {
                world.write(self.id, bytes, offset);
                Ok(bytes.len())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        let world = &mut *self.world.lock();
        let fault = world.call()?;
        if world.ignores_syncs {
            return Ok(());
        }
        let image = world.files.get_mut(&self.id).expect("an open file exists");
        let unsynced = std::mem::take(&mut image.unsynced);
        if let Some(Fault::Fails | Fault::SyncFails) = fault {
            return Err(io::Error::other("a planted sync error"));
        }
        for (offset, bytes) in unsynced {
            put(&mut image.durable, offset, &bytes);
        }
        Ok(())
    }

    fn forget_cached(&self) {
        let world = &mut *self.world.lock();
        if let Some((_, at)) = world.rot.take_if(|(file, _)| *file == self.id) {
            world.files.get_mut(&self.id).expect("an open file exists").live[at] ^= 0x10;
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.world.lock().files[&self.id].live.len() as u64)
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Appears(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Moves(from, to) => {
                let file = names.remove(from).expect("a name that moves exists");
                names.insert(to.clone(), file);
            }
            NameChange::Vanishes(name) => {
                names.remove(name);
            }
        }
    }
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset as usize..end].copy_from_slice(bytes);
}
