pub mod command;
pub mod error;
pub mod event;
pub mod lessor;
pub mod watch;
pub mod machine;
pub mod read;
