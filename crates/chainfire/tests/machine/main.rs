//! The state machine as a whole, over both engines, against a reference model.

mod backups;
mod errors;
mod model;
mod properties;
mod snapshots;
mod upkeep;
mod world;
