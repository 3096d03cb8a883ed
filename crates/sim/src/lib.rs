//! Floor 6: worlds in which the production code runs under faults, and the checks that judge it.
//!
//! * [`world`]: Chainfire's simulator. Production hosts, state machines and watch hubs on simulated disks, clocks and networks;
//!   one seed is one world.
//! * [`regions`]: FlareDB's simulator: stores and a placement driver.
//! * [`physics`]: what both are made of.
//! * [`linear`]: was a history of clients linearizable? Used by the simulator and by tests with real processes.

pub mod linear;
pub mod physics;
pub mod regions;
pub mod world;
