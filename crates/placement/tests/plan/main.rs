//! The planner on small views: [`checkers`], [`schedulers`], and what is told about them ([`explain`]).

mod checkers;
mod explain;
mod pure;
mod schedulers;
mod small;
