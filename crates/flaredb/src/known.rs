//! Where the other stores are, as the placement driver last said, kept in the data folder: a store that starts while no
//! placement driver is to be reached goes on with that, and serves the regions that it has.
//!
//! `DATA_DIR/stores`: the line `flaredb stores 1`, then a line for each store that is not gone for good, its id and where other
//! stores reach it (nothing: nowhere). It is replaced as a whole, durably, when it changes. No file, or one that makes no sense:
//! nothing is known, and the placement driver is waited for.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use proto::placement as pb;
use rpc::client::is_of_the_way;

use crate::pd::{Asking, PdClient, Placement};

const FILE: &str = "stores";
const TEMPORARY: &str = "stores.tmp";
const HEADER: &str = "flaredb stores 1";

/// The file, and what is in it.
pub struct Known {
    folder: PathBuf,
    stores: Mutex<Vec<(u64, String)>>,
}

impl Known {
    pub fn read(folder: &Path) -> Known {
        let text = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
        Known { folder: folder.to_owned(), stores: Mutex::new(parse(&text).unwrap_or_default()) }
    }

    /// Empty: nothing is known.
    pub fn stores(&self) -> Vec<pb::Store> {
        let store =
            |(id, peer_url): &(u64, String)| pb::Store { id: *id, peer_url: peer_url.clone(), ..Default::default() };
        self.stores.lock().iter().map(store).collect()
    }

    /// Does nothing where all of it is known.
    pub fn remember(&self, stores: &[pb::Store]) -> io::Result<()> {
        let mut known = self.stores.lock();
        let there = stores.iter().filter(|store| store.state() != pb::StoreState::Tombstone);
        let mut there: Vec<_> = there.map(|store| (store.id, store.peer_url.clone())).collect();
        there.sort();
        if there.is_empty() || *known == there {
            return Ok(());
        }
        let lines: String = there.iter().map(|(id, address)| format!("{id} {address}\n")).collect();
        let mut file = File::create(self.folder.join(TEMPORARY))?;
        write!(file, "{HEADER}\n{lines}")?;
        file.sync_all()?;
        fs::rename(self.folder.join(TEMPORARY), self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_all()?;
        *known = there;
        Ok(())
    }
}

fn parse(text: &str) -> Option<Vec<(u64, String)>> {
    let lines = text.strip_prefix(HEADER)?.strip_prefix('\n')?;
    let store =
        |line: &str| line.split_once(' ').and_then(|(id, address)| Some((id.parse().ok()?, address.to_owned())));
    lines.lines().map(store).collect()
}

/// The placement driver, of whose word on the stores note is taken.
pub struct Remembering {
    pd: Arc<PdClient>,
    known: Arc<Known>,
    /// It has refused this store, or put it off: it is there.
    spoke: AtomicBool,
    failed: AtomicBool,
}

impl Remembering {
    pub fn new(pd: Arc<PdClient>, known: Arc<Known>) -> Remembering {
        Remembering { pd, known, spoke: AtomicBool::new(false), failed: AtomicBool::new(false) }
    }

    /// Whether it said anything else than yes to this store when it asked to be taken in. Only silence lets a store begin
    /// without it.
    pub fn spoke(&self) -> bool {
        self.spoke.load(Ordering::SeqCst)
    }

    async fn note(&self, stores: &[pb::Store]) {
        let (known, stores) = (self.known.clone(), stores.to_vec());
        let noted =
            tokio::task::spawn_blocking(move || known.remember(&stores)).await.map_err(io::Error::other).flatten();
        let Err(why) = noted else { return self.failed.store(false, Ordering::Relaxed) };
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "flaredb_storage",
                "Where the other stores are was not kept, a start without a placement driver goes by what was, why={why} \
                 code=CF8526"
            );
        }
    }
}

impl Placement for Remembering {
    fn addresses(&self) -> String {
        self.pd.addresses()
    }

    fn register(&self, request: pb::RegisterRequest) -> Asking<'_, pb::RegisterResponse> {
        Box::pin(async move {
            let answer = self.pd.register(request).await;
            match &answer {
                Ok(response) => self.note(&response.stores).await,
                Err(status) if is_of_the_way(status) => {}
                Err(_) => self.spoke.store(true, Ordering::SeqCst),
            }
            answer
        })
    }

    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Asking<'_, pb::HeartbeatResponse> {
        Box::pin(async move {
            let response = self.pd.heartbeat(request).await?;
            self.note(&response.stores).await;
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::mutate;

    fn store(id: u64, peer_url: &str, state: pb::StoreState) -> pb::Store {
        pb::Store { id, peer_url: peer_url.to_owned(), state: state.into(), ..Default::default() }
    }

    #[test]
    fn what_was_remembered_is_known_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known::read(folder.path());
        assert!(known.stores().is_empty());
        let told = [
            store(3, "", pb::StoreState::Up),
            store(1, "10.0.0.1:2380", pb::StoreState::Up),
            store(2, "10.0.0.2:2380", pb::StoreState::Tombstone),
        ];
        known.remember(&told).unwrap();
        let again = Known::read(folder.path()).stores();
        assert_eq!(again, [store(1, "10.0.0.1:2380", pb::StoreState::Up), store(3, "", pb::StoreState::Up)]);
        // Nobody forgets all stores; and what is the same is not written again.
        known.remember(&[]).unwrap();
        fs::remove_file(folder.path().join(FILE)).unwrap();
        known.remember(&told).unwrap();
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let text = format!("{HEADER}\n1 10.0.0.1:2380\n3 \n");
        assert_eq!(parse(&text).unwrap().len(), 2);
        mutate(14, 50_000, &[text.into_bytes()], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Some(stores) = parse(&text) {
                assert!(stores.len() < text.lines().count());
            }
        });
    }

    #[test]
    fn what_makes_no_sense_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "flaredb stores 1", "flaredb stores 2\n1 a:1\n", "flaredb stores 1\nx a:1\n", "1 a:1\n"] {
            fs::write(folder.path().join(FILE), text).unwrap();
            assert!(Known::read(folder.path()).stores().is_empty(), "{text}");
        }
    }
}
