//! What a second reading of the configuration changes while Chainfire runs ([`crate::live`]); when it happens, and what is
//! said of it, is the business of [`node::reload`].

use std::sync::Arc;

use node::reload::{Reloader, warn};

use crate::config::{Request, Settings, Source};
use crate::live::{Live, Values};

/// `settings`: those in force.
pub fn reloader(source: Source, settings: &Settings, live: Arc<Live>) -> Reloader {
    // None when etcd's flags were given, which cannot change.
    let running = settings.layers.clone();
    let can_change = running.is_some();
    let read = move || {
        if !can_change {
            tracing::info!(target: "chainfire_config", "Flags of etcd were given, only certificates are read again");
            live.reloaded(true);
            return Ok(None);
        }
        let read = settings_again(&source, &live);
        live.reloaded(read.is_ok());
        Ok(Some(read?))
    };
    Reloader::new(running, Box::new(read))
}

/// Reads the settings and puts those in force that can change.
fn settings_again(source: &Source, live: &Live) -> Result<settings::Layers, String> {
    let settings = match source.read()? {
        Request::Run(settings) => settings,
        // The process could not run with these arguments.
        Request::Check { .. } | Request::Print(_) => return Err("the arguments do not start a node".to_owned()),
    };
    let read = settings.layers.clone().ok_or("the settings have no layers")?;
    node::logging::set_level(&settings.log_level)?;
    live.set(Values::of(&settings));
    warn(&settings.warnings);
    Ok(read)
}
