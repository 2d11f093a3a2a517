//! Values for control registers: as they are, but for a bit or two.

use iced_x86::Register;
use vmexit::mode::{cr0, cr4};

use crate::image::TABLES;
use crate::random::Random;

/// A value to load into a control register. Whatever it does, the next step starts from the setting's own.
pub fn value(random: &mut Random, register: Register) -> u64 {
    match register {
        Register::CR0 => {
            const TOGGLED: [u64; 8] = [0, 1 << 1, 1 << 2, 1 << 3, cr0::WP, 1 << 18, 1 << 29, 1 << 31];
            cr0::PE | cr0::ET | cr0::NE | cr0::WP | (cr0::PG ^ random.one_of(&TOGGLED))
        }
        Register::CR3 => TABLES | random.one_of(&[0, 8, 0x18]),
        Register::CR4 => {
            // TSD, DE, PSE, PGE, OSFXSR, OSXMMEXCPT, PAE, and bits that no CPU has.
            const TOGGLED: [u64; 8] = [0, 1 << 2, 1 << 3, 1 << 4, 1 << 7, cr4::OSFXSR, cr4::PAE, 1 << 40];
            cr4::PAE ^ cr4::OSFXSR ^ cr4::OSXMMEXCPT ^ random.one_of(&TOGGLED)
        }
        Register::CR8 => random.one_of(&[0, 1, 15, 16, 1 << 40]),
        _ => random.next(),
    }
}
