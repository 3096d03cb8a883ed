//! Where a process's settings come from, kept so that they can be read again while it runs: the command line and the
//! environment stay as they were at the start, files are read anew.

use std::ffi::OsString;

use crate::command_line::{Asked, Environment, understand};
use crate::layers::Layers;
use crate::schema::Schema;

/// Makes a program's own settings of what was given: what single values cannot show is checked here. What is allowed but
/// deserves a line in the log is added to the list.
pub type Validate<S> = fn(&Layers, &mut Vec<String>) -> Result<S, String>;

/// What a process was started with.
#[derive(Clone, Debug)]
pub struct Source<S> {
    schema: &'static Schema,
    validate: Validate<S>,
    arguments: Vec<String>,
    environment: Environment,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request<S> {
    Run(Box<Told<S>>),
    /// See whether a start with these settings would be refused for something that lies beside them, such as a file that
    /// they name. If not, print the answer and end well.
    Check {
        settings: Box<S>,
        answer: String,
    },
    /// Print this and end well.
    Print(String),
}

/// Settings, every value that they were made of, and what deserves a line in the log.
#[derive(Clone, Debug)]
pub struct Told<S> {
    pub settings: S,
    pub layers: Layers,
    pub warnings: Vec<String>,
}

impl<S> Source<S> {
    /// `words`: the arguments behind the program's name.
    pub fn new(
        schema: &'static Schema,
        validate: Validate<S>,
        words: impl IntoIterator<Item = OsString>,
        environment: Environment,
    ) -> Result<Source<S>, String> {
        let text = |word: OsString| word.into_string().map_err(|word| format!("{word:?} is not valid UTF-8"));
        let arguments = words.into_iter().map(text).collect::<Result<_, _>>()?;
        Ok(Source { schema, validate, arguments, environment })
    }

    /// Reads the settings, or says in one line what is wrong with them. Nothing is written.
    pub fn read(&self) -> Result<Request<S>, String> {
        let reading = match understand(self.schema, &self.arguments, &self.environment)? {
            Asked::Print(text) => return Ok(Request::Print(text)),
            Asked::Settings(reading) => reading,
        };
        let mut warnings = Vec::new();
        let settings = (self.validate)(&reading.layers, &mut warnings)?;
        if reading.check_only {
            let answer = reading.checked(&warnings);
            return Ok(Request::Check { settings: Box::new(settings), answer });
        }
        Ok(Request::Run(Box::new(Told { settings, layers: reading.layers, warnings })))
    }
}

/// The variables of this process. Those that are not text are not ours.
pub fn environment() -> Environment {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}
