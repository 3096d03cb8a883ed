//! The log stores, put to the test: what each file here does stands at its head.

mod content;
mod damage;
mod disk;
mod faults;
mod mark;
mod mirror;
mod operations;
mod power;
mod space;
mod suite;
