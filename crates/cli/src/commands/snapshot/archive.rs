//! The archive form of a backup: a gzipped tar of exactly one folder.
//!
//! ```text
//! chainfire-20261124T201500Z-rev1234/
//! chainfire-20261124T201500Z-rev1234/restore.snapshot      restore.changes in an incremental backup
//! chainfire-20261124T201500Z-rev1234/restore.sha256        the manifest
//! ```
//!
//! `tar -xzf FILE -C DATA_DIR --strip-components=1` leaves what a server looks for in an unused data folder.
//!
//! A tar wants to know the length of a file before its bytes, and a stream's is not known before its end. So the head
//! (the folder's header and the stream's) is a gzip member of its own, stored without compression and thus of a fixed
//! length, and is written when the rest is; a second member holds the rest. To whoever reads it, it is one file.
//!
//! Reading believes nothing: an entry that is no plain file in the one folder, with one of the names above, once, is
//! refused, and so are links, devices, sparse files and extension headers of any kind, a manifest that does not fit,
//! and whatever follows the end. What is wrong is found before anything is written, because whoever restores reads an
//! archive twice. Memory stays the same whatever the archive says of its sizes.

use std::io::{self, Read, Write};

use base::Moment;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, Crc};
use proto::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest};
use proto::snapshot::{CHANGES_FILE, RESTORE_FILE};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::draft::Draft;
use crate::failure::Failure;

/// The fastest: most of a store's bytes are values, and the disks of backups are large.
const COMPRESSION: u32 = 1;
const BLOCK_BYTES: usize = 512;
const HEAD_BYTES: usize = 2 * BLOCK_BYTES;
/// A gzip header, the head as one stored block, and the trailer.
const HEAD_MEMBER_BYTES: usize = 10 + 5 + HEAD_BYTES + 8;
const READ_BYTES: usize = 256 << 10;
/// No store of ours is larger.
const STREAM_BYTES_MAX: u64 = 16 << 40;
/// Zeros that may follow the end: tar fills up its last record.
const TAIL_BYTES_MAX: u64 = 1 << 20;

/// The first bytes of the form.
pub const MAGIC: [u8; 2] = [0x1F, 0x8B];

/// Writes an archive into a draft.
pub struct Writer {
    out: GzEncoder<Draft>,
    digest: Sha256,
    bytes: u64,
}

impl Writer {
    pub fn new(mut draft: Draft) -> Result<Writer, Failure> {
        draft.write(&[0; HEAD_MEMBER_BYTES])?;
        let out = GzEncoder::new(draft, Compression::new(COMPRESSION));
        Ok(Writer { out, digest: Sha256::new(), bytes: 0 })
    }

    /// Takes the next bytes of the stream.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.put(bytes)
    }

    /// The stream is complete. `folder` is the leading component; the digest and the name of the stream's file are filled
    /// into the manifest.
    pub fn finish(mut self, folder: &str, mut manifest: Manifest, made: Moment) -> Result<Draft, Failure> {
        let name = stream_file(&manifest);
        let digest: [u8; 32] = self.digest.finalize_reset().into();
        manifest.files = vec![(name.to_owned(), digest)];
        let text = manifest.encode();
        self.pad(self.bytes)?;
        self.put(
            header(&format!("{folder}/{MANIFEST_FILE}"), EntryType::Regular, text.len() as u64, made)?.as_bytes(),
        )?;
        self.put(text.as_bytes())?;
        self.pad(text.len() as u64)?;
        self.put(&[0; 2 * BLOCK_BYTES])?;
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(header(&format!("{folder}/"), EntryType::Directory, 0, made)?.as_bytes());
        head.extend_from_slice(header(&format!("{folder}/{name}"), EntryType::Regular, self.bytes, made)?.as_bytes());
        let mut draft = self.out.finish().map_err(|error| Failure::local(format!("cannot write a backup: {error}")))?;
        draft.write_at_front(&stored_member(&head))?;
        Ok(draft)
    }

    fn pad(&mut self, length: u64) -> Result<(), Failure> {
        self.put(&[0; BLOCK_BYTES][..(length.next_multiple_of(BLOCK_BYTES as u64) - length) as usize])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| self.out.get_ref().failed(&error))
    }
}

/// The name under which the stream lies in an archive with this manifest.
fn stream_file(manifest: &Manifest) -> &'static str {
    if manifest.base.is_some() { CHANGES_FILE } else { RESTORE_FILE }
}

fn header(path: &str, kind: EntryType, size: u64, made: Moment) -> Result<Header, Failure> {
    let mut header = Header::new_gnu();
    header.set_path(path).map_err(|error| Failure::local(format!("cannot name {path} in an archive: {error}")))?;
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o700 } else { 0o600 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(made.0);
    header.set_cksum();
    Ok(header)
}

/// A gzip member that holds `bytes` as they are.
fn stored_member(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a head is small");
    let mut crc = Crc::new();
    crc.update(bytes);
    let mut out = vec![MAGIC[0], MAGIC[1], 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&u32::from(length).to_le_bytes());
    out
}

/// Reads an archive from end to end and checks it; `each` gets the stream's bytes as they come, to which the last word,
/// whether they are those that the manifest names, is not yet said. Breaks off when `each` fails.
///
/// # Errors
/// Why it is no intact backup, or cannot be read.
pub fn read(from: impl Read, each: &mut dyn FnMut(&[u8]) -> Result<(), Stop>) -> Result<Manifest, Stop> {
    let mut archive = tar::Archive::new(MultiGzDecoder::new(from));
    // Raw: what other readers act upon silently is an entry like any other here, and refused.
    let entries = archive.entries().map_err(unreadable)?.raw(true);
    let mut folder: Option<Vec<u8>> = None;
    let mut manifest = None;
    let mut stream: Option<(&'static str, [u8; 32])> = None;
    for entry in entries {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path_bytes().into_owned();
        let (top, name) = split(&path).ok_or_else(|| unwanted(&path, "is not a file in its one folder"))?;
        if folder.get_or_insert_with(|| top.to_vec()) != top {
            return Err(unwanted(&path, "lies in another folder than the one before"));
        }
        let size = entry.header().entry_size().map_err(unreadable)?;
        let kind = entry.header().entry_type();
        match name {
            b"" if kind == EntryType::Directory && size == 0 => {}
            _ if kind != EntryType::Regular => return Err(unwanted(&path, "is no plain file")),
            _ if name == MANIFEST_FILE.as_bytes() && manifest.is_none() => {
                if size > MANIFEST_BYTES_MAX as u64 {
                    return Err(unwanted(&path, "is too long"));
                }
                let mut text = Vec::new();
                entry.read_to_end(&mut text).map_err(unreadable)?;
                let read = Manifest::decode(&text);
                manifest = Some(read.map_err(|why| Stop::Damaged(format!("its manifest makes no sense: {why}")))?);
            }
            _ => {
                let known = [RESTORE_FILE, CHANGES_FILE].into_iter().find(|known| name == known.as_bytes());
                let Some(known) = known.filter(|_| stream.is_none()) else {
                    return Err(unwanted(&path, "does not belong into a backup, or is there twice"));
                };
                if size > STREAM_BYTES_MAX {
                    return Err(unwanted(&path, "is larger than any store"));
                }
                stream = Some((known, pour(&mut entry, size, each)?));
            }
        }
    }
    ends(archive.into_inner())?;
    let manifest = manifest.ok_or_else(|| Stop::Damaged(format!("there is no {MANIFEST_FILE} in it")))?;
    let Some((name, digest)) = stream else { return Err(Stop::Damaged("there is no data in it".into())) };
    if manifest.files != [(name.to_owned(), digest)] || name != stream_file(&manifest) {
        return Err(Stop::Damaged(format!("{name} is not what its manifest says: another SHA-256, name or kind")));
    }
    Ok(manifest)
}

/// Why reading ended early.
#[derive(Debug)]
pub enum Stop {
    /// It is no intact backup, for people.
    Damaged(String),
    /// It could not be read.
    Unreadable(io::Error),
    /// Whoever was given the bytes failed.
    Taker(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Taker(failure)
    }
}

/// A decoder's complaint is about the bytes; the system's is not.
fn unreadable(error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidData
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => Stop::Damaged(format!("it cannot be unpacked: {error}")),
        _ if error.raw_os_error().is_none() => Stop::Damaged(format!("it cannot be unpacked: {error}")),
        _ => Stop::Unreadable(error),
    }
}

fn unwanted(path: &[u8], why: &str) -> Stop {
    let path: String = path.iter().take(100).flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
    Stop::Damaged(format!("entry `{path}` {why}"))
}

/// The folder and the name of an entry's path, if it has one of each and nothing else. A folder's own name is empty.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().position(|byte| *byte == b'/')?;
    let (folder, name) = (&path[..slash], &path[slash + 1..]);
    let plain = |part: &[u8]| {
        let fine = |byte: &u8| byte.is_ascii_alphanumeric() || [b'.', b'-', b'_'].contains(byte);
        part.iter().all(fine) && !part.starts_with(b".")
    };
    (!folder.is_empty() && plain(folder) && plain(name)).then_some((folder, name))
}

fn pour(entry: &mut impl Read, size: u64, each: &mut dyn FnMut(&[u8]) -> Result<(), Stop>) -> Result<[u8; 32], Stop> {
    let mut buffer = vec![0; READ_BYTES];
    let (mut digest, mut read) = (Sha256::new(), 0);
    loop {
        let length = entry.read(&mut buffer).map_err(unreadable)?;
        if length == 0 {
            break;
        }
        digest.update(&buffer[..length]);
        read += length as u64;
        each(&buffer[..length])?;
    }
    if read == size { Ok(digest.finalize().into()) } else { Err(Stop::Damaged("it ends too early".into())) }
}

/// Reads on to the end, where there is nothing but zeros.
fn ends(mut rest: impl Read) -> Result<(), Stop> {
    let mut buffer = vec![0; READ_BYTES];
    let mut tail = 0;
    loop {
        let length = rest.read(&mut buffer).map_err(unreadable)?;
        tail += length as u64;
        if length == 0 {
            return Ok(());
        }
        if tail > TAIL_BYTES_MAX || buffer[..length].iter().any(|byte| *byte != 0) {
            return Err(Stop::Damaged("something follows after the end".into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::mutate;

    /// An archive with a stream of this content.
    fn archive(content: &[u8], base: Option<i64>) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar.gz");
        let mut writer = Writer::new(Draft::create(&path).unwrap()).unwrap();
        content.chunks(1000).for_each(|part| writer.write(part).unwrap());
        let manifest = Manifest { revision: 7, base, ..Manifest::default() };
        writer.finish("chainfire-x-rev7", manifest, Moment(1_000_000_000)).unwrap().publish(&path).unwrap();
        fs::read(&path).unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<(Manifest, Vec<u8>), String> {
        let mut out = Vec::new();
        let manifest = read(bytes, &mut |part| {
            out.extend_from_slice(part);
            Ok(())
        });
        match manifest {
            Ok(manifest) => Ok((manifest, out)),
            Err(Stop::Damaged(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A tar of entries, gzipped: (path as it stands in the header, kind, link, content).
    fn tarred(entries: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        for (path, kind, link, content) in entries {
            let mut header = Header::new_gnu();
            // Set by hand: the library would refuse what is to be refused.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            out.write_all(header.as_bytes()).unwrap();
            out.write_all(content).unwrap();
            out.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
        }
        out.write_all(&[0; 1024]).unwrap();
        out.finish().unwrap()
    }

    fn manifest_of(content: &[u8]) -> Vec<u8> {
        let files = vec![(RESTORE_FILE.to_owned(), Sha256::digest(content).into())];
        Manifest { files, ..Manifest::default() }.encode().into_bytes()
    }

    #[test]
    fn what_is_written_is_read() {
        for length in [0, 1, 511, 512, 513, 300_000] {
            let content: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
            for base in [None, Some(3)] {
                let (manifest, read) = read_all(&archive(&content, base)).unwrap();
                assert!(read == content);
                assert_eq!((manifest.revision, manifest.base), (7, base));
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        let intact = archive(&[b"some content, and more of it ".as_slice(); 40].concat(), None);
        let expected = read_all(&intact).unwrap();
        // What a gzip header says of time and system, and the bits that fill up a last byte, are nothing of the content.
        let mut unseen = 0;
        for at in 0..intact.len() {
            let mut flipped = intact.clone();
            flipped[at] ^= 0x20;
            if let Ok(read) = read_all(&flipped) {
                assert!(read == expected, "byte {at}");
                unseen += 1;
            }
        }
        assert!(unseen <= 40, "{unseen}");
        for cut in 0..intact.len() {
            assert!(read_all(&intact[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn hostile_archives_are_refused() {
        let content = b"state".as_slice();
        let manifest = &manifest_of(content)[..];
        let file = EntryType::Regular;
        let good = [("a/restore.snapshot", file, "", content), ("a/restore.sha256", file, "", manifest)];
        assert_eq!(read_all(&tarred(&good)).unwrap().1, content);
        let folder = ("a/", EntryType::Directory, "", &b""[..]);
        assert_eq!(read_all(&tarred(&[folder, good[1], good[0]])).unwrap().1, content);
        let with = |entry| tarred(&[good[0], entry, good[1]]);
        let long = [b'x'; MANIFEST_BYTES_MAX + 1];
        for (bad, why) in [
            (with(("../etc/passwd", file, "", content)), "not a file in its one folder"),
            (with(("a/../b", file, "", content)), "not a file in its one folder"),
            (with(("/etc/passwd", file, "", content)), "not a file in its one folder"),
            (with(("restore.changes", file, "", content)), "not a file in its one folder"),
            (with(("./restore.changes", file, "", content)), "not a file in its one folder"),
            (with(("a/b/restore.changes", file, "", content)), "not a file in its one folder"),
            (with(("a/.hidden", file, "", content)), "not a file in its one folder"),
            (with(("b/restore.changes", file, "", content)), "another folder"),
            (with(("a/identity", file, "", content)), "does not belong"),
            (with(("a/restore.snapshot", file, "", content)), "twice"),
            (with(("a/restore.changes", file, "", content)), "twice"),
            (with(("a/restore.changes", EntryType::Symlink, "/etc/passwd", b"")), "no plain file"),
            (with(("a/restore.changes", EntryType::Link, "a/restore.snapshot", b"")), "no plain file"),
            (with(("a/restore.changes", EntryType::Char, "", b"")), "no plain file"),
            (with(("a/restore.changes", EntryType::Block, "", b"")), "no plain file"),
            (with(("a/restore.changes", EntryType::Fifo, "", b"")), "no plain file"),
            (with(("a/restore.changes", EntryType::GNUSparse, "", b"")), "no plain file"),
            (with(("a/b", EntryType::GNULongName, "", b"a/../../x\0")), "no plain file"),
            (with(("a/b", EntryType::XHeader, "", b"30 path=../../../../etc/passwd\n")), "no plain file"),
            (with(("a/b", EntryType::Directory, "", b"")), "no plain file"),
            (tarred(&[good[0]]), "no restore.sha256"),
            (tarred(&[good[1]]), "no data"),
            (tarred(&[good[0], good[1], good[1]]), "twice"),
            (tarred(&[("a/restore.snapshot", file, "", b"other"), good[1]]), "another SHA-256"),
            (tarred(&[("a/restore.changes", file, "", content), good[1]]), "another SHA-256, name or kind"),
            (tarred(&[good[0], ("a/restore.sha256", file, "", &long)]), "too long"),
            (tarred(&[good[0], ("a/restore.sha256", file, "", b"what?\n")]), "makes no sense"),
            ([tarred(&good), tarred(&good)].concat(), "something follows"),
        ] {
            let found = read_all(&bad).expect_err(why);
            assert!(found.contains(why), "{found} instead of {why}");
        }
        // A bomb: much of nothing behind the end.
        let mut bomb = GzEncoder::new(Vec::new(), Compression::fast());
        bomb.write_all(&vec![0; 4 << 20]).unwrap();
        assert!(read_all(&[tarred(&good), bomb.finish().unwrap()].concat()).unwrap_err().contains("something follows"));
    }

    /// Changed at random, both as it lies on the disk and unpacked: refused, or read as what its manifest says.
    #[test]
    fn nothing_makes_the_reader_panic_or_believe() {
        let content = b"state".as_slice();
        let manifest = &manifest_of(content)[..];
        let file = EntryType::Regular;
        let packed = [archive(content, None), archive(content, Some(2))];
        let check = |bytes: &[u8]| {
            if let Ok((manifest, read)) = read_all(bytes) {
                assert_eq!(manifest.files[0].1, <[u8; 32]>::from(Sha256::digest(&read)));
            }
        };
        mutate::mutate(11, 20_000, &packed, check);
        let tar = tarred(&[("a/restore.snapshot", file, "", content), ("a/restore.sha256", file, "", manifest)]);
        let mut plain = Vec::new();
        MultiGzDecoder::new(&tar[..]).read_to_end(&mut plain).unwrap();
        mutate::mutate(12, 20_000, &[plain], |bytes| {
            let mut out = GzEncoder::new(Vec::new(), Compression::none());
            out.write_all(bytes).unwrap();
            check(&out.finish().unwrap());
        });
        mutate::mutate(13, 50_000, &[manifest.to_vec()], |bytes| {
            if let Ok(manifest) = Manifest::decode(bytes) {
                assert_eq!(manifest.encode().as_bytes(), bytes);
            }
        });
    }
}
