//! Starting operating systems that others wrote: what a boot loader and the
//! firmware would have left in memory. Chapters 11 and 16.

pub mod linux;
pub mod acpi;
pub mod kept;
