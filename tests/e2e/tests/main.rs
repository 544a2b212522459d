//! End-to-end tests: the programs as a user has them, with real virtual machines.
//!
//! Every test says in its first words which promise it keeps. Each has a [`banger_testkit::Host`]
//! of its own, and so its own daemon; what they share is one pulled image and kernel.

mod bad_input;
mod build;
mod catalog;
mod concurrency;
mod crash;
mod disks;
mod doctor;
mod exec;
mod faults;
mod figures;
mod fork;
mod full_disk;
mod host_trouble;
mod hostile_guest;
mod hostile_images;
mod images;
mod images_guide;
mod jail;
mod kernels;
mod leftovers;
mod life;
mod lifecycle;
mod logs;
mod memory;
mod model;
mod network;
mod pause;
mod pool;
mod promote;
mod readme;
mod register;
mod registry;
mod registry_access;
mod robust_pulls;
mod run;
mod set;
mod snapshot;
mod system_init;
mod templates;
mod ten_images;
mod terminal;
mod trace;
mod upgrade;
