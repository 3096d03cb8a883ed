//! Where the other stores and the placement driver's members are, as these last said, kept in the data folder: a store that starts
//! while no placement driver is to be reached goes on with that, and serves the regions that it has; one whose configuration names
//! a member that is gone finds the others.
//!
//! `DATA_DIR/stores`: the line `flaredb stores 1`, then a line for each store that is not gone for good, its id and where other
//! stores reach it (nothing: nowhere), then `pd` and a URL for each member of the placement driver. It is replaced as a whole,
//! durably, when it changes. No file, or one that makes no sense: nothing is known, and the placement driver is waited for.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use proto::placement as pb;
use rpc::client::is_of_the_way;
use tonic::Status;

use crate::pd::{Asking, PdClient, Placement};

const FILE: &str = "stores";
const TEMPORARY: &str = "stores.tmp";
const HEADER: &str = "flaredb stores 1";

/// The file, and what is in it.
pub struct Known {
    folder: PathBuf,
    places: Mutex<Places>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    /// By their ids.
    stores: Vec<(u64, String)>,
    members: Vec<String>,
}

impl Known {
    pub fn read(folder: &Path) -> Known {
        let text = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
        Known { folder: folder.to_owned(), places: Mutex::new(parse(&text).unwrap_or_default()) }
    }

    /// Empty: nothing is known.
    pub fn stores(&self) -> Vec<pb::Store> {
        let store =
            |(id, peer_url): &(u64, String)| pb::Store { id: *id, peer_url: peer_url.clone(), ..Default::default() };
        self.places.lock().stores.iter().map(store).collect()
    }

    /// URLs of the placement driver's members.
    pub fn members(&self) -> Vec<String> {
        self.places.lock().members.clone()
    }

    /// Does nothing where all of it is known. No stores, no members: nothing is said of them.
    pub fn remember(&self, stores: &[pb::Store], members: &[String]) -> io::Result<()> {
        let mut known = self.places.lock();
        let there = stores.iter().filter(|store| store.state() != pb::StoreState::Tombstone);
        let mut there: Vec<_> = there.map(|store| (store.id, store.peer_url.clone())).collect();
        there.sort();
        let mut now = known.clone();
        if !there.is_empty() {
            now.stores = there;
        }
        if !members.is_empty() {
            now.members = members.iter().filter(|member| !member.contains(char::is_whitespace)).cloned().collect();
        }
        if *known == now {
            return Ok(());
        }
        let stores = now.stores.iter().map(|(id, address)| format!("{id} {address}\n"));
        let lines: String = stores.chain(now.members.iter().map(|member| format!("pd {member}\n"))).collect();
        let mut file = File::create(self.folder.join(TEMPORARY))?;
        write!(file, "{HEADER}\n{lines}")?;
        file.sync_all()?;
        fs::rename(self.folder.join(TEMPORARY), self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_all()?;
        *known = now;
        Ok(())
    }
}

fn parse(text: &str) -> Option<Places> {
    let lines = text.strip_prefix(HEADER)?.strip_prefix('\n')?;
    let mut places = Places::default();
    for line in lines.lines() {
        match line.split_once(' ')? {
            ("pd", member) => places.members.push(member.to_owned()),
            (id, address) => places.stores.push((id.parse().ok()?, address.to_owned())),
        }
    }
    Some(places)
}

/// The placement driver, of whose word on the stores note is taken.
pub struct Remembering {
    pd: Arc<PdClient>,
    known: Arc<Known>,
    /// It has refused this store, or put it off: it is there.
    spoke: AtomicBool,
    failed: AtomicBool,
    put_off: Box<dyn Fn(&Status) + Send + Sync>,
}

impl Remembering {
    /// `put_off` is told each time that the store was not taken in, and why.
    pub fn new(pd: Arc<PdClient>, known: Arc<Known>, put_off: impl Fn(&Status) + Send + Sync + 'static) -> Remembering {
        let (spoke, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        Remembering { pd, known, spoke, failed, put_off: Box::new(put_off) }
    }

    /// Whether it said anything else than yes to this store when it asked to be taken in. Only silence lets a store begin
    /// without it.
    pub fn spoke(&self) -> bool {
        self.spoke.load(Ordering::SeqCst)
    }

    async fn note(&self, stores: &[pb::Store], members: &[String]) {
        let (known, stores, members) = (self.known.clone(), stores.to_vec(), members.to_vec());
        let noted = tokio::task::spawn_blocking(move || known.remember(&stores, &members))
            .await
            .map_err(io::Error::other)
            .flatten();
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
                Ok(response) => self.note(&response.stores, &[]).await,
                Err(status) => {
                    (self.put_off)(status);
                    if !is_of_the_way(status) {
                        self.spoke.store(true, Ordering::SeqCst);
                    }
                }
            }
            answer
        })
    }

    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Asking<'_, pb::HeartbeatResponse> {
        Box::pin(async move {
            let response = self.pd.heartbeat(request).await?;
            if !response.members.is_empty() {
                self.pd.learn(&response.members);
            }
            self.note(&response.stores, &response.members).await;
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
        known.remember(&told, &["http://10.0.0.9:2379".to_owned()]).unwrap();
        assert_eq!(Known::read(folder.path()).members(), ["http://10.0.0.9:2379"]);
        let again = Known::read(folder.path()).stores();
        assert_eq!(again, [store(1, "10.0.0.1:2380", pb::StoreState::Up), store(3, "", pb::StoreState::Up)]);
        // Nobody forgets all stores; and what is the same is not written again.
        known.remember(&[], &[]).unwrap();
        fs::remove_file(folder.path().join(FILE)).unwrap();
        known.remember(&told, &[]).unwrap();
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let text = format!("{HEADER}\n1 10.0.0.1:2380\n3 \npd http://10.0.0.9:2379\n");
        assert_eq!(parse(&text).map(|places| (places.stores.len(), places.members.len())), Some((2, 1)));
        mutate(14, 50_000, &[text.into_bytes()], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Some(places) = parse(&text) {
                assert!(places.stores.len() + places.members.len() < text.lines().count());
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
