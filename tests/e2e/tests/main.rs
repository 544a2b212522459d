//! End-to-end tests: the programs as a user has them, with real virtual machines.
//!
//! Every test says in its first words which promise it keeps. Each has a [`banger_testkit::Host`]
//! of its own, and so its own daemon; what they share is one pulled image and kernel.

mod bad_input;
mod crash;
mod doctor;
mod exec;
mod images;
mod jail;
mod lifecycle;
mod network;
mod readme;
mod run;
mod terminal;
