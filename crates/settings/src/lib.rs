//! Floor 4: what a program may be told, and how it is read: a TOML file with drop-ins, the environment, flags.
//!
//! A program has a table of keys and says who it is ([`Schema`]); the rest follows from that: reading, complaints that name
//! the place and what was probably meant, `--check-config`, `--help`, a commented default configuration, manual pages,
//! completion for shells, and what a second reading has changed.
//!
//! | room | its subject |
//! |---|---|
//! | [`schema`] | what is particular to one program: its keys, sections and words |
//! | [`value`], [`listen`], [`duration`] | what a key takes: kinds of values, addresses, durations |
//! | [`command_line`], [`file`](mod@file) | where values are given |
//! | [`source`] | both, kept so that they can be read again |
//! | [`layers`] | the last value given for each key, and who gave it |
//! | [`change`] | what a second reading has changed, and what of it takes effect |
//! | [`help`], `man`, `completion`, [`reference`](mod@reference) | texts made from the table |
//! | [`nearest`], `mistakes` | what was probably meant, and all that is wrong in one line |
//!
//! # The life of a setting
//! The schema lists it: section, name, flag, kind, default, help → it is *given* in some layer ([`file`](mod@file)
//! for TOML, [`command_line`] for environment and flags) → [`value::Kind`] reads it, or says what is wrong →
//! [`layers::Layers`] keeps the last one given, and who gave it → the program checks what belongs together, and derives the
//! values that its code uses.
//!
//! Layers, each overriding those before: defaults < file < drop-in files in the order of their names < environment <
//! flags.
//!
//! # Invariants
//! 1. What is not understood is refused: an unknown key, a value out of bounds, a setting of a later version. One line
//!    says where it stands, what it is, and what was probably meant, of each mistake.
//! 2. The printed default configuration holds every key and reads back as the defaults.
//! 3. Files are read, nothing is written, and no state is kept: two readings differ only where files do.
//!
//! # How a program begins
//! ```
//! use settings::command_line::{Asked, Environment, understand};
//! use settings::{Key, Kind, Manual, Schema};
//!
//! static SCHEMA: Schema = Schema {
//!     program: "kettle",
//!     name: "Kettle",
//!     title: "boils water",
//!     version: env!("CARGO_PKG_VERSION"),
//!     version_text: || format!("kettle {}\n", env!("CARGO_PKG_VERSION")),
//!     help_head: "Kettle: boils water.\n\nUsage: kettle [FLAGS]\n",
//!     commands: &[],
//!     variable_prefix: "KETTLE_",
//!     default_file: "/etc/kettle/kettle.toml",
//!     sections: &[("water", "What is in it.")],
//!     keys: &[Key {
//!         section: "water",
//!         name: "litres",
//!         flag: "litres",
//!         kind: Kind::Number { min: 1, max: 3 },
//!         default: "1",
//!         help: &["how much to boil"],
//!     }],
//!     changeable: &[],
//!     later: &[("tea", "it cannot make tea yet")],
//!     top_level: None,
//!     explained_above: None,
//!     example: ("water", "litres"),
//!     manual: Manual { also_called: &[], description: "It runs until the water boils.", files: &[], see_also: &[] },
//! };
//!
//! /// What the rest of the program uses.
//! struct Settings {
//!     litres: u64,
//! }
//!
//! fn start(flags: &[&str], environment: &Environment) -> Result<String, String> {
//!     let flags: Vec<String> = flags.iter().map(|word| word.to_string()).collect();
//!     let reading = match understand(&SCHEMA, &flags, environment)? {
//!         Asked::Print(text) => return Ok(text),
//!         Asked::Settings(reading) => reading,
//!     };
//!     // Here it is seen to what belongs together; complaints begin with `layers.origin(…)`.
//!     let settings = Settings { litres: reading.layers.number("water", "litres") };
//!     if reading.check_only {
//!         return Ok(reading.checked(&[]));
//!     }
//!     Ok(format!("boiling {} l", settings.litres))
//! }
//!
//! let given = |name: &str, value: &str| Environment::from([(name.to_owned(), value.to_owned())]);
//! assert_eq!(start(&["--litres=2"], &Environment::new()).unwrap(), "boiling 2 l");
//! assert_eq!(start(&[], &given("KETTLE_WATER_LITRES", "3")).unwrap(), "boiling 3 l");
//! assert_eq!(
//!     start(&["--litres=4"], &Environment::new()).unwrap_err(),
//!     "flag --litres: water.litres must be a whole number from 1 to 3, not \"4\""
//! );
//! // In a test of the program:
//! assert_eq!(SCHEMA.mistakes(), Vec::<String>::new());
//! ```

pub mod change;
pub mod command_line;
mod completion;
pub mod duration;
#[cfg(test)]
mod example;
pub mod file;
pub mod help;
pub mod layers;
pub mod listen;
mod man;
mod mistakes;
pub mod nearest;
pub mod reference;
pub mod schema;
pub mod source;
pub mod value;

pub use layers::Layers;
pub use schema::{Key, Manual, Schema};
pub use value::Kind;
