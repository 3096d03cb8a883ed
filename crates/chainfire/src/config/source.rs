//! Where this process's settings come from, kept so that they can be read again while it runs: the command line and the
//! environment stay as they were at the start, files are read anew.

use std::ffi::OsString;
use std::path::Path;

use settings::command_line::Environment;

use super::{Request, command_line};
use crate::etcd_flags;

/// What the process was started with.
#[derive(Clone, Debug)]
pub struct Source {
    etcd: bool,
    arguments: Vec<String>,
    environment: Environment,
}

impl Source {
    /// `program` decides whether etcd's flags are taken; `words` come behind it.
    pub fn new(
        program: &OsString,
        words: impl IntoIterator<Item = OsString>,
        environment: Environment,
    ) -> Result<Source, String> {
        let text = |word: OsString| word.into_string().map_err(|word| format!("{word:?} is not valid UTF-8"));
        let mut arguments = words.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let mut etcd = Path::new(program).file_name().is_some_and(|name| name == "etcd");
        if !etcd && arguments.first().is_some_and(|word| word == "etcd") {
            arguments.remove(0);
            etcd = true;
        }
        Ok(Source { etcd, arguments, environment })
    }

    /// Reads the settings, or says in one line what is wrong with them. Nothing is written.
    pub fn read(&self) -> Result<Request, String> {
        let understand = if self.etcd { etcd_flags::understand } else { command_line::understand };
        understand(&self.arguments, &self.environment)
    }
}
