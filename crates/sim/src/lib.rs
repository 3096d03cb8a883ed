//! Floor 6: a world in which the production code runs under faults, and the checks that judge it.
//!
//! * [`world`]: the simulator. Production hosts, state machines and watch hubs on simulated disks, clocks and networks; one
//!   seed is one world.
//! * [`linear`]: was a history of clients linearizable? Used by the simulator and by tests with real processes.

pub mod linear;
pub mod world;
