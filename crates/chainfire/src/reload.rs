//! SIGHUP: the configuration is read again. What can change takes effect at once ([`crate::live`]), every other key that
//! differs gets one line that says that it needs a restart, and certificates are read anew. A configuration that is not
//! understood changes nothing: the one in force stays, and the log says what is wrong and where.

use std::sync::Arc;

use node::service::Service;
use settings::Layers;
use settings::change::{self, Change};

use crate::config::{Request, Settings, Source};
use crate::live::{Live, Values};

/// Reads the certificates again and says what came of it.
pub type ReloadCertificates = Arc<dyn Fn() + Send + Sync>;

pub struct Reloader {
    source: Source,
    /// As in force. None when etcd's flags were given, which cannot change.
    running: Option<Layers>,
    live: Arc<Live>,
    certificates: ReloadCertificates,
}

impl Reloader {
    pub fn new(source: Source, settings: &Settings, live: Arc<Live>, certificates: ReloadCertificates) -> Reloader {
        Reloader { source, running: settings.layers.clone(), live, certificates }
    }

    /// Does it all and tells of it.
    pub fn reload(&mut self, service: &Service) {
        service.reloading();
        tracing::info!(target: "chainfire_config", "Reading the configuration again");
        let read = self.settings().map(|changes| {
            let (taken, waiting): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|change| change.changeable);
            for Change { key, from, to, origin, .. } in &taken {
                tracing::info!(target: "chainfire_config", "Setting changed, key={key} from={from} to={to} by={origin}");
            }
            for Change { key, from, to, origin, .. } in &waiting {
                tracing::warn!(
                    target: "chainfire_config",
                    "Setting needs a restart, key={key} running={from} given={to} by={origin} code=CF7002"
                );
            }
            tracing::info!(
                target: "chainfire_config",
                "Configuration reloaded, changed={} needs_restart={}",
                taken.len(),
                waiting.len()
            );
        });
        if let Err(why) = &read {
            tracing::error!(
                target: "chainfire_config",
                "Configuration not reloaded, the one in force stays, why={why} code=CF7004"
            );
        }
        self.live.reloaded(read.is_ok());
        (self.certificates)();
        service.ready();
    }

    /// Reads the settings and puts those in force that can change.
    fn settings(&mut self) -> Result<Vec<Change>, String> {
        let Some(running) = &self.running else {
            tracing::info!(target: "chainfire_config", "Flags of etcd were given, only certificates are read again");
            return Ok(Vec::new());
        };
        let settings = match self.source.read()? {
            Request::Run(settings) => settings,
            // The process could not run with these arguments.
            Request::Print(_) => return Err("the arguments do not start a node".to_owned()),
        };
        let read = settings.layers.as_ref().ok_or("the settings have no layers")?;
        let changes = change::between(running, read);
        node::logging::set_level(&settings.log_level)?;
        self.live.set(Values::of(&settings));
        self.running = Some(change::merged(running, read));
        for warning in &settings.warnings {
            tracing::warn!(target: "chainfire_config", "{warning}");
        }
        Ok(changes)
    }
}
