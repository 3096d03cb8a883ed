//! Named clusters: a file that says which endpoints and certificates a name stands for.
//!
//! It is `chainfire-client.toml` in `centra` in the user's configuration folder (`CHAINFIRE_CLIENT_CONFIG` names another):
//!
//! ```toml
//! current = "prod"
//!
//! [contexts.prod]
//! endpoints = ["https://node1:2379", "https://node2:2379"]
//! cacert = "/home/op/prod/ca.crt"
//! cert = "/home/op/prod/client.crt"
//! key = "/home/op/prod/client.key"
//! ```
//!
//! It holds paths of certificates, not certificates, and is written whole or not at all. No file is no context.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

use crate::failure::{CONTEXT_BROKEN, CONTEXT_UNKNOWN, Failure};
use crate::settings::Global;

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cacert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// All contexts of this user.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    pub fn load() -> Result<Contexts, Failure> {
        let Some(path) = path() else { return Ok(Contexts::default()) };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => return Err(Failure::local(format!("{}: {error}", path.display())).code(CONTEXT_BROKEN)),
        };
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let why = error.message().lines().next().unwrap_or_default().to_owned();
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            Failure::local(format!("{}: line {line}: {why}", path.display()))
                .advise("mend the file, or delete it and use `context set`")
                .code(CONTEXT_BROKEN)
        })
    }

    pub fn find(&self, name: &str) -> Result<Context, Failure> {
        self.contexts.get(name).cloned().ok_or_else(|| {
            let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
            Failure::usage(format!("no context `{name}`"))
                .advise(format!("known: {known}; make one with `context set NAME --endpoint URL`"))
                .code(CONTEXT_UNKNOWN)
        })
    }

    pub fn current(&self) -> Result<Option<Context>, Failure> {
        self.current.as_ref().map(|name| self.find(name)).transpose()
    }

    /// Takes what the flags say; what they do not say stays as it is.
    pub fn set(&mut self, name: &str, given: &Global) -> Result<(), Failure> {
        let context = self.contexts.entry(name.to_owned()).or_default();
        if !given.endpoints.is_empty() {
            context.endpoints.clone_from(&given.endpoints);
        }
        for (file, field) in
            [(&given.cacert, &mut context.cacert), (&given.cert, &mut context.cert), (&given.key, &mut context.key)]
        {
            if let Some(file) = file {
                // The name shall mean the same from any folder.
                *field = Some(
                    fs::canonicalize(file).map_err(|error| Failure::local(format!("{}: {error}", file.display())))?,
                );
            }
        }
        if given.server_name.is_some() {
            context.server_name.clone_from(&given.server_name);
        }
        if context.endpoints.is_empty() {
            return Err(Failure::usage(format!("context `{name}` has no endpoint")).advise("give --endpoint URL"));
        }
        Ok(())
    }

    pub fn save(&self) -> Result<(), Failure> {
        let path = path().ok_or_else(|| Failure::local("there is no HOME to keep contexts in"))?;
        let write = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            let draft = path.with_extension("toml.draft");
            fs::write(&draft, toml::to_string(self).map_err(io::Error::other)?)?;
            fs::rename(&draft, &path)
        };
        write().map_err(|error| Failure::local(format!("{}: cannot be written: {error}", path.display())))
    }
}

fn path() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("CHAINFIRE_CLIENT_CONFIG").or_else(|| {
        let config = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))?;
        Some(config.join("centra/chainfire-client.toml"))
    })
}
