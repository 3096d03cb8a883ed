//! Changing certificates under a running node: by signal, or by itself when the files change.
//!
//! Files are changed one after the other, so a set in between does not fit together: the old one stays until it does. A
//! set that is refused is reported once, until its bytes change again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::files::Files;
use super::{Certificates, FileKind, Set, names_member};

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A set that does not fit together may be half written; it is reported when it has not changed for so many looks.
const PATIENCE_LOOKS: u32 = 2;
const DAY_S: i64 = 86_400;
const WARN_BEFORE_S: i64 = 30 * DAY_S;
const WARN_EVERY: Duration = Duration::from_secs(86_400);

impl Certificates {
    /// Takes the files as they are. `false`: they are those in use.
    ///
    /// # Errors
    /// They are not usable, and nothing was changed.
    pub fn reload(&self) -> Result<bool, String> {
        let files = Files::read(&self.options).map_err(|error| error.to_string());
        let files = files.inspect_err(|_| {
            self.failed_reloads.fetch_add(1, Ordering::Relaxed);
        })?;
        if files.digest() == self.set.load().digest {
            return Ok(false);
        }
        let made = files.into_set(self.options.api).map_err(|error| error.to_string());
        match made.and_then(|set| self.not_worse(set)) {
            Ok(set) => {
                let revoked = set.revoked.clone();
                self.set.store(Arc::new(set));
                let cut = self.standing.cut_revoked(&revoked);
                if cut > 0 {
                    tracing::warn!(
                        target: "chainfire_network",
                        "Cut connections whose certificates were revoked, connections={cut} code=CF3106"
                    );
                }
                self.reloads.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) => {
                self.failed_reloads.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Whatever others would refuse, while what is in use is good, is a mistake.
    fn not_worse(&self, set: Set) -> Result<Set, String> {
        let (old, now_s) = (self.set.load(), unix_time_s());
        for (new, old) in set.files.iter().zip(&old.files) {
            if new.kind.is_shown() && new.expires_s <= now_s && old.expires_s > now_s {
                let path = new.path.display();
                return Err(format!("certificate verify failed: {path} has expired already, the one in use has not"));
            }
        }
        let named = |set: &Set| {
            let bearer = self.bearer.lock();
            let Some((node, address)) = &*bearer else { return true };
            names_member(self.options.program, &set.own, *node, [address.as_str()])
                .is_ok_and(|vouched| vouched.is_some())
        };
        if !named(&set) && named(&old) {
            let path = self.options.cert_file.display();
            return Err(format!("certificate verify failed: {path} does not name this node, the one in use does"));
        }
        Ok(set)
    }

    /// As [`Certificates::reload`], and says in the log what came of it.
    pub fn reload_aloud(&self) {
        match self.reload() {
            Ok(true) => {
                self.say_what_is_in_use();
                self.warn_of_expiry();
            }
            Ok(false) => tracing::info!(target: "chainfire_network", "Certificates are unchanged"),
            Err(why) => complain(&why),
        }
    }

    fn say_what_is_in_use(&self) {
        let set = self.set.load();
        tracing::info!(
            target: "chainfire_network",
            "Certificates are in use, subject={} expires_in_days={} ca_expires_in_days={}",
            set.subject,
            days_left(set.expires_s(&[FileKind::Certificate, FileKind::ApiCertificate])),
            days_left(set.expires_s(&[FileKind::Ca, FileKind::ClientCa]))
        );
    }

    /// Warns of what expires soon, or has.
    fn warn_of_expiry(&self) {
        for file in &self.set.load().files {
            let (path, left_s) = (file.path.display(), file.expires_s - unix_time_s());
            match (file.kind, left_s <= 0) {
                (FileKind::Crl, true) => tracing::warn!(
                    target: "chainfire_network",
                    "A revocation list is older than its CA meant it to be: what was revoked since is let in; replace the \
                     file, no restart is needed, file={path} expired_days_ago={} code=CF3105",
                    -left_s / DAY_S
                ),
                (FileKind::Crl, false) => {}
                (_, true) => tracing::error!(
                    target: "chainfire_network",
                    "certificate verify failed: {path} has expired, and others refuse it; replace the file, no restart is \
                     needed, expired_days_ago={} code=CF3102",
                    -left_s / DAY_S
                ),
                (_, false) if left_s < WARN_BEFORE_S => tracing::warn!(
                    target: "chainfire_network",
                    "A certificate expires soon: replace the file, no restart is needed, file={path} expires_in_days={}",
                    left_s / DAY_S
                ),
                _ => {}
            }
        }
    }
}

/// Looks after the files for as long as the node runs.
pub async fn tend(certificates: Arc<Certificates>) {
    certificates.say_what_is_in_use();
    certificates.warn_of_expiry();
    let mut warned = tokio::time::Instant::now();
    let (mut refused, mut looks) = (None, 0);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if warned.elapsed() >= WARN_EVERY {
            warned = tokio::time::Instant::now();
            certificates.warn_of_expiry();
        }
        let looked = certificates.clone();
        let look = move || {
            let digest = Files::read(looked.options()).map(|files| files.digest()).ok();
            (digest, digest != Some(looked.set.load().digest))
        };
        let Ok((digest, changed)) = tokio::task::spawn_blocking(look).await else { continue };
        if !changed {
            (refused, looks) = (None, 0);
            continue;
        }
        if refused == Some(digest) {
            looks += 1;
            if looks != PATIENCE_LOOKS {
                continue;
            }
        }
        match certificates.reload() {
            Ok(_) => {
                certificates.say_what_is_in_use();
                certificates.warn_of_expiry();
                (refused, looks) = (None, 0);
            }
            Err(why) if refused == Some(digest) => complain(&why),
            Err(_) => (refused, looks) = (Some(digest), 0),
        }
    }
}

fn complain(why: &str) {
    tracing::error!(target: "chainfire_network", "Certificates were not replaced, the old ones stay in use, why={why} code=CF3103");
}

fn days_left(expires_s: i64) -> i64 {
    (expires_s - unix_time_s()) / DAY_S
}

fn unix_time_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
