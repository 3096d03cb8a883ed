//! What every engine must do, checked on RocksDB and on its twin in memory: one conformance suite, a mirror of
//! random operations, and for RocksDB alone what only a disk can suffer.

mod conformance;
mod damage;
mod mirror;
mod replacement;
mod room;
mod subject;
