//! Connections that stand. A certificate is asked for once, in the handshake; when a list revokes it later, the connections that
//! were made with it are cut.
//!
//! Whoever is let in, and members that are connected to, are noted here with their chains and a way to cut the connection. New
//! lists are looked at when they come ([`Certificates::reload`](super::Certificates::reload)), for revocation alone: a CA that
//! goes and a certificate that ends are the business of the next handshake, so that certificates are changed without dropping
//! a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::Certificates;
use super::verify::Revoked;

/// All connections with a certificate of the other side.
#[derive(Default)]
pub struct Standing(Mutex<All>);

#[derive(Default)]
struct All {
    next: u64,
    connections: BTreeMap<u64, One>,
}

struct One {
    chain: Vec<CertificateDer<'static>>,
    cut: Box<dyn Fn() + Send>,
}

/// The connection is there; dropped with it.
pub struct Stands {
    standing: Arc<Standing>,
    number: u64,
}

impl Drop for Stands {
    fn drop(&mut self) {
        self.standing.0.lock().connections.remove(&self.number);
    }
}

impl Certificates {
    /// Notes a connection with whoever showed `chain`. `None`: nothing was shown, and so nothing can be revoked.
    ///
    /// `cut` must not wait, and may be called when the connection has just ended, or before this returns: its handshake may have
    /// begun under an older list.
    pub fn note(&self, chain: Option<&[CertificateDer<'static>]>, cut: impl Fn() + Send + 'static) -> Option<Stands> {
        let stands = self.standing.note(chain?, cut);
        // A list that comes from here on finds the connection.
        let revoked = &self.set.load().revoked;
        if chain?.iter().any(|shown| revoked.names(shown)) {
            self.standing.cut(&stands);
        }
        Some(stands)
    }
}

impl Standing {
    fn note(self: &Arc<Self>, chain: &[CertificateDer<'static>], cut: impl Fn() + Send + 'static) -> Stands {
        let mut all = self.0.lock();
        let number = all.next;
        all.next += 1;
        all.connections.insert(number, One { chain: chain.to_vec(), cut: Box::new(cut) });
        Stands { standing: self.clone(), number }
    }

    fn cut(&self, stands: &Stands) {
        if let Some(one) = self.0.lock().connections.get(&stands.number) {
            (one.cut)();
        }
    }

    /// Cuts those whose certificate is revoked; how many.
    pub fn cut_revoked(&self, revoked: &Revoked) -> usize {
        let all = self.0.lock();
        let told = all.connections.values().filter(|one| one.chain.iter().any(|shown| revoked.names(shown)));
        told.inspect(|one| (one.cut)()).count()
    }
}
