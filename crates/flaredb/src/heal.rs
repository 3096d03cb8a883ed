//! A store whose log or state is damaged.
//!
//! ```text
//!  damage found ─▶ kept in the folder (`damaged`) ─▶ the process starts itself again ─▶ the placement driver is asked:
//!   can the others do without this store?  ─ not yet ─▶ asked again
//!                                          ─ never ───▶ the store ends, and says what is to be done
//!                                          ─ yes ─────▶ a tombstone; the folder begins anew: `lost-PEER/`, another incarnation
//!                                                       ─▶ registers as an empty store, and gets an id and replicas
//! ```
//! A store with damage answers nothing and takes no part, from the moment that it is found. To give it up is as if it had
//! died: what it acknowledged is on a majority with it, and the placement driver lets it go only where the others are a
//! majority that is well. Nothing of the old incarnation comes back: regions' peers are bound to the store's id, and that is
//! not used again. More than a few times within an hour, and the disk or the memory is what is wrong.

use std::time::Duration;

use node::heal::{Damage, unix_s};
use node::identity::Folder;
use tonic::Code;

use crate::config::Settings;
use crate::pd::{PdClient, Placement as _};
use crate::supervisor::{About, request};

const ASK_EVERY: Duration = Duration::from_secs(1);
/// While nothing changes, waiting is mentioned this often.
const SAY_EVERY: u32 = 60;

/// Waits until the store may be given up, and gives it up: the folder is one of an empty store then. The error is one line
/// for people.
pub async fn give_up(settings: &Settings, pd: &PdClient, about: &About, damage: &Damage) -> Result<(), String> {
    let folder = Folder::open(&settings.node.data_dir, "").map_err(|error| error.to_string())?;
    let identity = folder.identity(settings.node.node).map_err(|error| error.to_string())?;
    folder.mark_damaged(&damage.encode()).map_err(|error| error.to_string())?;
    let about = About { store_id: identity.node.0, ..about.clone() };
    let request = proto::placement::RegisterRequest { lost: true, ..request(&about, &identity) };
    let mut asked = 0;
    while let Err(status) = pd.register(request.clone()).await {
        let path = folder.path().display();
        if matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument) {
            return Err(format!(
                "the {} is damaged ({}), and the store cannot be made anew from others: {}; keep {path}, or empty it if its \
                 data may go",
                damage.what.name(),
                damage.why,
                status.message()
            ));
        }
        if asked % SAY_EVERY == 0 {
            tracing::error!(
                target: "flaredb_storage",
                "This store is damaged, answers nothing and waits until the others can do without it, what={} why={} \
                 waits_for={} code=CF8541",
                damage.what.name(),
                damage.why,
                status.message()
            );
        }
        asked += 1;
        tokio::time::sleep(ASK_EVERY).await;
    }
    if !folder.count_rebuild(unix_s()).map_err(|error| error.to_string())? {
        return Err(format!(
            "the {} is damaged again ({}), for the sixth time within an hour: the disk or the memory of this machine is \
             failing; replace it",
            damage.what.name(),
            damage.why
        ));
    }
    let next = folder.reincarnate(&identity).map_err(|error| error.to_string())?;
    tracing::warn!(
        target: "flaredb_storage",
        "This store was damaged and begins anew, what it held is made anew from others, what={} why={} store_id={} \
         lost-{} incarnation={} code=CF8542",
        damage.what.name(),
        damage.why,
        identity.node,
        identity.peer,
        next.peer
    );
    Ok(())
}
