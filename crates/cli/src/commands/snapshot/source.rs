//! Reading a saved file of either form, from its first byte to its last, checking all of it on the way.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::Path;

use proto::content::{Check, Counts, FAMILIES};
use proto::manifest::Manifest;
use proto::snapshot::{BadSnapshot, Content, FILE_DIGEST_BYTES, FRAME_BYTES_MAX, Header, Pair, Reader};
use sha2::{Digest, Sha256};

use super::archive::{self, Stop};
use super::progress::Progress;
use crate::failure::Failure;

/// What a file was found to hold.
#[derive(Debug)]
pub struct Found {
    pub content: Content,
    pub counts: Counts,
    /// Of an archive.
    pub manifest: Option<Manifest>,
    /// Of the stream.
    pub sha256: [u8; 32],
    /// The file's length.
    pub file_bytes: u64,
}

impl Found {
    pub fn header(&self) -> &Header {
        &self.content.header
    }
}

/// What the file's reader wants of it.
pub trait Taker {
    /// The stream's bytes, in order.
    fn bytes(&mut self, _bytes: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    /// The stream's pairs, in order.
    fn pair(&mut self, _header: &Header, _pair: Pair<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Who wants nothing but to know whether all is well.
pub struct Nobody;

impl Taker for Nobody {}

/// Reads a file and checks it: digests, frames, pairs, records, counts. What the taker was given is believed when this
/// returns without an error.
pub fn read(path: &Path, what: &'static str, taker: &mut dyn Taker) -> Result<Found, Failure> {
    let mut open = Open::new(path)?;
    let mut progress = Progress::new(what, open.bytes);
    let mut reader = Reader::new(FAMILIES);
    let mut check = Some(Check::default());
    let read = open.run(&mut progress, &mut |bytes| {
        taker.bytes(bytes)?;
        reader.feed(bytes);
        while let Some((pair, header)) = reader.pair_and_header().map_err(damaged)? {
            check.as_mut().expect("taken at the end").pair(header, pair).map_err(damaged)?;
            taker.pair(header, pair)?;
        }
        Ok(())
    });
    let end = read.and_then(|(manifest, sha256)| {
        let content = reader.finish().map_err(damaged)?;
        let counts = check.take().expect("taken once").finish(&content.header).map_err(damaged)?;
        if let Some(manifest) = &manifest {
            fits(manifest, &content.header)?;
        }
        Ok(Found { content, counts, manifest, sha256, file_bytes: open.bytes })
    });
    end.map_err(|stop| failure(path, stop))
}

fn damaged(why: BadSnapshot) -> Stop {
    Stop::Damaged(why.0)
}

/// Whether the manifest says what the stream says.
fn fits(manifest: &Manifest, header: &Header) -> Result<(), Stop> {
    let told = (manifest.revision, manifest.raft_index, manifest.raft_term, manifest.base, manifest.cluster);
    let is = (header.revision, header.raft_index, header.raft_term, header.since, header.cluster());
    if told == is { Ok(()) } else { Err(Stop::Damaged("its manifest contradicts its content".into())) }
}

fn failure(path: &Path, stop: Stop) -> Failure {
    match stop {
        Stop::Damaged(why) => {
            Failure::local(format!("{} is no intact snapshot: {why}", path.display())).advise(USE_ANOTHER)
        }
        Stop::Unreadable(error) => unreadable(path, &error),
        Stop::Taker(failure) => failure,
    }
}

/// What to do when a file is not what was saved.
const USE_ANOTHER: &str = "nothing was changed; use another backup";

/// Whether a failure says that a file's content is damaged; otherwise it may be intact and could not be read.
pub fn is_damaged(failure: &Failure) -> bool {
    failure.advice.as_deref() == Some(USE_ANOTHER)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("cannot read {}: {error}", path.display())).advise("check path and permissions")
}

/// A file at its beginning.
struct Open {
    file: BufReader<File>,
    bytes: u64,
    is_archive: bool,
}

/// The manifest, and the SHA-256 of the stream.
type Ended = (Option<Manifest>, [u8; 32]);

impl Open {
    fn new(path: &Path) -> Result<Open, Failure> {
        let open = || -> io::Result<Open> {
            let mut file = File::open(path)?;
            let found = file.metadata()?;
            if !found.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            let mut magic = Vec::new();
            (&mut file).take(archive::MAGIC.len() as u64).read_to_end(&mut magic)?;
            file.rewind()?;
            let is_archive = magic == archive::MAGIC;
            Ok(Open { file: BufReader::with_capacity(FRAME_BYTES_MAX, file), bytes: found.len(), is_archive })
        };
        open().map_err(|error| unreadable(path, &error))
    }

    /// Reads the stream to its end; `each` gets it in pieces.
    fn run(&mut self, progress: &mut Progress, each: &mut dyn FnMut(&[u8]) -> Result<(), Stop>) -> Result<Ended, Stop> {
        if !self.is_archive {
            return self.run_bare(progress, each);
        }
        let mut sha256 = Sha256::new();
        let manifest = archive::read(Counted { from: &mut self.file, progress }, &mut |bytes| {
            sha256.update(bytes);
            each(bytes)
        })?;
        Ok((Some(manifest), sha256.finalize().into()))
    }

    fn run_bare(
        &mut self,
        progress: &mut Progress,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Stop>,
    ) -> Result<Ended, Stop> {
        let stream_bytes = self.bytes.checked_sub(FILE_DIGEST_BYTES as u64).filter(|bytes| *bytes > 0);
        let mut rest = stream_bytes.ok_or_else(|| Stop::Damaged("it is too short".into()))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while rest > 0 {
            let wanted = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let length = self.file.read(&mut buffer[..wanted]).map_err(Stop::Unreadable)?;
            if length == 0 {
                return Err(Stop::Damaged("it became shorter while it was read".into()));
            }
            hasher.update(&buffer[..length]);
            each(&buffer[..length])?;
            progress.advance(length as u64);
            rest -= length as u64;
        }
        let mut digest = [0; FILE_DIGEST_BYTES];
        self.file.read_exact(&mut digest).map_err(Stop::Unreadable)?;
        if hasher.finalize()[..] != digest {
            return Err(Stop::Damaged("its content does not fit its SHA-256".into()));
        }
        Ok((None, digest))
    }
}

/// Counts what is read of the file itself.
struct Counted<'a, R> {
    from: R,
    progress: &'a mut Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.progress.advance(length as u64);
        Ok(length)
    }
}
