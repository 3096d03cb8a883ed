//! The words after an offline command.

use std::ffi::OsString;
use std::path::PathBuf;

use node::InitialMember;
use settings::command_line::Environment;

use super::Failure;
use crate::config::command_line::understand;
use crate::config::{Request, Settings};

#[derive(Default)]
pub struct Arguments {
    data_dir: Option<PathBuf>,
    config: Option<String>,
    pub help: bool,
    pub json: bool,
    pub local: bool,
    pub is_unsafe: bool,
    pub committed_only: bool,
    pub yes: bool,
}

/// Which flags a command has beside `--data-dir`, `--config` and `--help`.
fn known(command: &str) -> &'static [&'static str] {
    match command {
        "check" => &["output"],
        "repair" => &["local"],
        "recover" => &["unsafe", "committed-only", "yes"],
        _ => &[],
    }
}

pub fn parse(words: &[OsString], command: &str) -> Result<Arguments, Failure> {
    let mut given = Arguments::default();
    let refused = |why: String| Failure::not_done(format!("{why}; see chainfire {command} --help"));
    let mut words = words.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let (name, inline) = match word.as_str() {
            "-h" => ("help", None),
            "-o" => ("output", None),
            "-y" => ("yes", None),
            _ => {
                let rest = word.strip_prefix("--").ok_or_else(|| refused(format!("`{word}` is not a flag")))?;
                rest.split_once('=').map_or((rest, None), |(name, value)| (name, Some(value.to_owned())))
            }
        };
        let always = ["data-dir", "config", "help"];
        if !always.contains(&name) && !known(command).contains(&name) {
            return Err(refused(format!("unknown flag --{name}")));
        }
        if matches!(name, "data-dir" | "config" | "output") {
            let value = inline.or_else(|| words.next());
            let value = value.ok_or_else(|| refused(format!("flag --{name} needs a value")))?;
            match (name, value.as_str()) {
                ("data-dir", _) => given.data_dir = Some(value.into()),
                ("config", _) => given.config = Some(value),
                (_, "json") => given.json = true,
                (_, "simple") => given.json = false,
                _ => return Err(refused(format!("--output is `simple` or `json`, not `{value}`"))),
            }
            continue;
        }
        if inline.is_some() {
            return Err(refused(format!("flag --{name} takes no value")));
        }
        match name {
            "help" => given.help = true,
            "local" => given.local = true,
            "unsafe" => given.is_unsafe = true,
            "committed-only" => given.committed_only = true,
            _ => given.yes = true,
        }
    }
    Ok(given)
}

impl Arguments {
    /// The folder named here, or the one that the node's configuration names.
    pub fn data_dir(&self) -> Result<PathBuf, Failure> {
        match &self.data_dir {
            Some(path) => Ok(path.clone()),
            None => self.settings().map(|settings| settings.node.data_dir),
        }
    }

    /// The other members that the configuration names, as far as it can be read.
    pub fn configured_peers(&self) -> Vec<InitialMember> {
        let Ok(settings) = self.settings() else { return Vec::new() };
        let own = node::transport::bare_address(&settings.node.advertise_peer).to_owned();
        let others = settings.node.initial.into_iter();
        others.filter(|member| node::transport::bare_address(&member.address) != own).collect()
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let words: Vec<String> = self.config.iter().flat_map(|file| ["--config".to_owned(), file.clone()]).collect();
        let environment: Environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        match understand(&words, &environment) {
            Ok(Request::Run(settings)) => Ok(*settings),
            Ok(Request::Check { .. } | Request::Print(_)) => {
                Err(Failure::not_done("name the folder with --data-dir code=CF4101"))
            }
            Err(why) => Err(Failure::not_done(format!("{why}; or name the folder with --data-dir code=CF4101"))),
        }
    }
}
