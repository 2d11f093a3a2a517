//! Devices, and the bus that finds the one that a guest's access is for.
//! Chapters 12 and 16.

mod bus;
pub mod keyboard;
pub mod pc;
pub mod power;
pub mod rtc;
pub mod serial;

pub use bus::{Bus, Device, Request};
