//! From the command line and the environment to a [`Request`].

use settings::command_line::{Asked, Environment};

use super::schema::SCHEMA;
use super::{Request, validate};

/// Understands `arguments` (without the program's name), or says in one line why not. Files are read, nothing is written.
pub fn understand(arguments: &[String], environment: &Environment) -> Result<Request, String> {
    let reading = match settings::command_line::understand(&SCHEMA, arguments, environment)? {
        Asked::Print(text) => return Ok(Request::Print(text)),
        Asked::Settings(reading) => reading,
    };
    let settings = validate::validate(&reading.layers)?;
    if reading.check_only {
        let answer = reading.checked(&settings.warnings);
        return Ok(Request::Check { settings: Box::new(settings), answer });
    }
    Ok(Request::Run(Box::new(settings)))
}
