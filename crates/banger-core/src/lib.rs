//! Pure decisions: names, sizes, specifications, states, the doctor's judgement.
//!
//! Nothing here performs input or output, reads a clock, draws a random number or waits. A function
//! of this crate with the same arguments always gives the same result, so all of it is tested in
//! tables and properties.

pub mod change;
pub mod doctor;
pub mod duration;
pub mod entrypoint;
pub mod event_filter;
pub mod expiry;
pub mod filter;
pub mod id;
pub mod lifecycle;
pub mod name;
pub mod reference;
pub mod restart;
pub mod scope;
pub mod signal;
pub mod size;
pub mod snapshot;
pub mod spec;
pub mod standstill;
pub mod suggest;
pub mod time_of_day;
pub mod vanished;
