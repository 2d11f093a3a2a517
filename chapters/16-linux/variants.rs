//! The broken variants, and what each changes once everything is in memory.

use anyhow::Result;
use vmexit::boot::linux::{self, Start, header};
use vmexit::chapter::Break;
use vmexit::guest::Memory;
use vmexit::run::Run;

pub const ALL: &[Break] = &[
    Break {
        name: "no-irqchip",
        what: "there are no interrupt controllers and no timer inside KVM",
        why: "the kernel found no timer that interrupts, halted to wait for one all the same, and without an irqchip \
              every HLT exits: nobody is there who would ever wake it",
    },
    Break {
        name: "memory-map",
        what: "the memory map promises 1 GiB more than there is, and KASLR is off",
        why: "the kernel allocates from the top, where no slot is: what it writes there is lost, and what it reads \
              back is all ones, its page tables too",
    },
    Break {
        name: "entry-32",
        what: "the CPU starts in 64-bit mode, but at the 32-bit entry",
        why: "the code at offset 0 is 32-bit code, and in 64-bit mode its bytes mean other instructions: the first \
              wrong access is a fault, no interrupt gate is there yet, and so a triple fault",
    },
    Break {
        name: "no-initrd",
        what: "the zero page says that there is no initramfs",
        why: "without an initramfs the kernel looks for a root file system on a disk, and there is none",
    },
];

/// The command line: a kernel that may choose where it runs would choose memory
/// that is not there, and say nothing at all.
pub fn command_line(run: &Run, text: &str) -> String {
    if run.breaks("memory-map") { format!("{text} nokaslr") } else { text.to_owned() }
}

/// Changes what the variant that was asked for changes.
pub fn apply(run: &Run, memory: &Memory, start: &mut Start) -> Result<()> {
    let field = |offset: usize| start.rsi + offset as u64;
    if run.breaks("memory-map") {
        /// The last range's size: after its start, in the third entry of 20 bytes.
        const SIZE: usize = linux::E820_TABLE + 2 * 20 + 8;
        let more = memory.size() as u64 - (1 << 20) + (1 << 30);
        memory.write(field(SIZE), &more.to_le_bytes())?;
    }
    if run.breaks("no-initrd") {
        memory.write(field(header::offset::RAMDISK_SIZE), &[0; 4])?;
    }
    if run.breaks("entry-32") {
        start.rip -= linux::ENTRY_64;
    }
    Ok(())
}
