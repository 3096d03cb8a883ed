//! SIGHUP: the configuration is read again. What can change takes effect at once, every other key that differs gets one
//! line that says that it needs a restart, and certificates are read anew. A configuration that is not understood changes
//! nothing: the one in force stays, and the log says what is wrong and where.

use std::sync::Arc;

use settings::Layers;
use settings::change::{self, Change};
use settings::source::{Request, Source};
use tokio::signal::unix::{SignalKind, signal};

use crate::logging;
use crate::service::{Service, told_to_stop};
use crate::tls::Certificates;

/// Reads the configuration again and puts in force what can change of it. `None`: there is nothing to read again.
pub type Read = Box<dyn FnMut() -> Result<Option<Layers>, String> + Send>;

pub struct Reloader {
    /// As in force.
    running: Option<Layers>,
    read: Read,
    certificates: Option<Arc<Certificates>>,
}

impl Reloader {
    pub fn new(running: Option<Layers>, read: Read) -> Reloader {
        Reloader { running, read, certificates: None }
    }

    /// For a program of which nothing but the log level can change.
    pub fn of<S: 'static>(source: Source<S>, running: Layers) -> Reloader {
        let read = move || {
            let told = match source.read()? {
                Request::Run(told) => told,
                // The process could not run with these arguments.
                Request::Check { .. } | Request::Print(_) => {
                    return Err("the arguments do not start a server".to_owned());
                }
            };
            logging::set_level(told.layers.text("log", "level"))?;
            warn(&told.warnings);
            Ok(Some(told.layers))
        };
        Reloader::new(Some(running), Box::new(read))
    }

    /// Those that are read again too.
    #[must_use]
    pub fn with(self, certificates: Option<Arc<Certificates>>) -> Reloader {
        Reloader { certificates, ..self }
    }

    /// Does it all and tells of it.
    pub fn reload(&mut self, service: &Service) {
        service.reloading();
        tracing::info!(target: "chainfire_config", "Reading the configuration again");
        match (self.read)() {
            Ok(read) => self.tell(read),
            Err(why) => tracing::error!(
                target: "chainfire_config",
                "Configuration not reloaded, the one in force stays, why={why} code=CF7004"
            ),
        }
        if let Some(certificates) = &self.certificates {
            certificates.reload_aloud();
        }
        service.ready();
    }

    fn tell(&mut self, read: Option<Layers>) {
        let (mut taken, mut waiting) = (0, 0);
        if let (Some(running), Some(read)) = (&self.running, &read) {
            for Change { key, from, to, origin, changeable } in change::between(running, read) {
                if changeable {
                    taken += 1;
                    tracing::info!(target: "chainfire_config", "Setting changed, key={key} from={from} to={to} by={origin}");
                } else {
                    waiting += 1;
                    tracing::warn!(
                        target: "chainfire_config",
                        "Setting needs a restart, key={key} running={from} given={to} by={origin} code=CF7002"
                    );
                }
            }
            self.running = Some(change::merged(running, read));
        }
        tracing::info!(
            target: "chainfire_config",
            "Configuration reloaded, changed={taken} needs_restart={waiting}"
        );
    }
}

/// What is allowed but deserves a line in the log.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(target: "chainfire_config", "{warning}");
    }
}

/// From here on SIGHUP ends nothing. One that comes before [`until_told_to_stop`] is for nobody: what it would have read again
/// is being read.
pub fn expect_hangups() {
    // The handler stays when the stream is gone.
    drop(signal(SignalKind::hangup()).expect("signals can be watched"));
}

/// Until the process is told to end; on SIGHUP it reads its configuration again.
pub async fn until_told_to_stop(mut reloader: Reloader, service: &Service) {
    let mut hangup = signal(SignalKind::hangup()).expect("signals can be watched");
    let mut told = std::pin::pin!(told_to_stop());
    loop {
        tokio::select! {
            () = &mut told => return,
            _ = hangup.recv() => reloader.reload(service),
        }
    }
}
