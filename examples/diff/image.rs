//! The guest's memory as every sequence finds it.
//!
//! ```text
//! guest-physical   0x0000  real mode's vector table
//!                  0x1000  the instructions, each in 32 bytes of hlt
//!                  0x2000  a hlt for each vector, 16 bytes apart
//!                  0x3000  IDT; 0x3800 GDT, 0x3900 LDT, 0x3a00 TSS
//!                  0x4000  ring 0's stack for whatever comes from ring 3
//!                  0x5000  the stack
//!                  0x6000  scratch memory, two pages, where most addresses point
//!                  0x8000  page tables
//!                  0xd000  more hlt: where jumps go
//!                  0x10000 the end of memory: MMIO
//! ```
//!
//! Paging maps what is below 0x10000 to itself: ring 3 may use the code, both
//! stacks' neighbour, the scratch memory and 0xd000. Beyond come pages that are
//! read-only, not present, ring 0's, data only, and not memory; see [`VIEWS`].

use vmexit::paging::entry;
use vmexit::segment::Descriptor;

use crate::setting::{Paging, SETTINGS, Setting};

pub const CODE: u64 = 0x1000;
/// Room for an instruction and for what it may jump over.
pub const SLOT: u64 = 32;
pub const HANDLERS: u64 = 0x2000;
pub const HANDLER: u64 = 16;
pub const IDT: u64 = 0x3000;
pub const GDT: u64 = 0x3800;
pub const TABLE_LIMIT: u16 = 0xff;
pub const LDT: u64 = 0x3900;
pub const TSS: u64 = 0x3a00;
/// With the bits of the ports 0 to 255, and the byte that must follow.
pub const TSS_LIMIT: u32 = 0x68 + 0x20;
pub const KERNEL_STACK: u64 = 0x4800;
const DOUBLE_FAULT_STACK: u64 = 0x4f00;
pub const STACK_PAGE: u64 = 0x5000;
pub const STACK: u64 = 0x5800;
pub const SCRATCH: u64 = 0x6000;
pub const TABLES: u64 = 0x8000;
pub const TABLES_END: u64 = 0xd000;
pub const LANDING: u64 = 0xd000;
pub const MEMORY: usize = 0x10000;
pub const PAGE: u64 = 0x1000;
pub const HLT: u8 = 0xf4;

const BUSY_TSS: u64 = 0x8b;
const FREE_TSS: u64 = 0x89;

/// A descriptor from its base, its limit, its access byte (P, DPL, S, type) and G, D/B, L and AVL.
const fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

const BIG: u64 = 0xc; // G, D/B
const LONG: u64 = 0xa; // G, L
const SMALL: u64 = 0x0;

/// A call gate to a selector, at [`LANDING`]; the access byte says P, DPL and type.
const fn gate(selector: u64, parameters: u64, access: u64) -> u64 {
    LANDING & 0xffff | selector << 16 | parameters << 32 | access << 40 | (LANDING >> 16 & 0xffff) << 48
}

/// The GDT: flat segments of every size and ring, and one of each kind that is refused somewhere.
#[rustfmt::skip] // a table
fn gdt(setting: &Setting) -> [u64; 32] {
    let long = setting.is_long();
    let code_64 = if long { LONG } else { BIG };
    let (ring_0_code, parameters) = if long { (0x28, 0) } else { (0x30, 2) };
    [
        0,
        descriptor(0, 0xfffff, 0x9b, BIG),               // 0x08 code, ring 0
        descriptor(0, 0xfffff, 0x93, BIG),               // 0x10 data, ring 0
        descriptor(0, 0xfffff, 0xfb, BIG),               // 0x18 code, ring 3
        descriptor(0, 0xfffff, 0xf3, BIG),               // 0x20 data, ring 3
        descriptor(0, 0xfffff, 0x9b, code_64),           // 0x28 64-bit code, ring 0
        descriptor(0, 0xfffff, 0x9b, BIG),               // 0x30 32-bit code, ring 0
        descriptor(0, 0x0ffff, 0x9b, SMALL),             // 0x38 16-bit code, ring 0
        descriptor(0, 0xfffff, 0xfb, BIG),               // 0x40 32-bit code, ring 3
        descriptor(0, 0x0ffff, 0xfb, SMALL),             // 0x48 16-bit code, ring 3
        descriptor(0, 0xfffff, 0xfb, code_64),           // 0x50 64-bit code, ring 3
        descriptor(0, 0x07fff, 0x93, 4),                 // 0x58 data up to 0x7fff, ring 0
        descriptor(0x6000, 0x00fff, 0xf2, 4),            // 0x60 data of a page, ring 3, not accessed yet
        descriptor(0, 0x00005, 0xf7, BIG),               // 0x68 data that expands down from 4 GiB to 0x6000
        descriptor(0, 0xfffff, 0xf0, BIG),               // 0x70 data to read, ring 3, not accessed yet
        descriptor(0, 0xfffff, 0x73, BIG),               // 0x78 data that is not present
        descriptor(0, 0xfffff, 0x9f, BIG),               // 0x80 conforming code
        descriptor(0, 0xfffff, 0xf9, BIG),               // 0x88 code to execute only
        descriptor(LDT, 0x1f, 0x82, 0), 0,               // 0x90 the LDT
        descriptor(TSS, TSS_LIMIT as u64, BUSY_TSS, 0), 0, // 0xa0 the task
        descriptor(TSS + 0x100, 0x67, FREE_TSS, 0), 0,   // 0xb0 another one
        gate(ring_0_code, parameters, 0xec), 0,          // 0xc0 a call gate, ring 3
        gate(ring_0_code, parameters, 0x6c), 0,          // 0xd0 the same, not present
        descriptor(0, 0x0ffff, 0xf3, SMALL),             // 0xe0 a 16-bit stack, ring 3
        descriptor(0, 0x0ffff, 0x93, SMALL),             // 0xe8 a 16-bit stack, ring 0
        descriptor(0, 0xfffff, 0x1b, BIG),               // 0xf0 code that is not present
        descriptor(0, 0xfffff, 0xff, BIG),               // 0xf8 conforming code, ring 3
    ]
}

/// Selectors worth loading: everything above, with the RPLs that decide, a bit of the LDT, and beyond both tables.
#[rustfmt::skip] // a table
pub const SELECTORS: [u16; 40] = [
    0x00, 0x03, 0x08, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x2b, 0x30, 0x38, 0x40, 0x43, 0x48,
    0x4b, 0x50, 0x53, 0x58, 0x60, 0x63, 0x68, 0x6b, 0x70, 0x73, 0x78, 0x7b, 0x80, 0x88, 0x8b, 0x90,
    0xa0, 0xb0, 0xc0, 0xc3, 0xf0, 0xfb, 0x0f, 0x108,
];

/// The descriptor behind a selector of the GDT.
pub fn descriptor_at(setting: &Setting, selector: u16) -> Descriptor {
    Descriptor(gdt(setting)[usize::from(selector >> 3)])
}

const USER: u64 = entry::PRESENT | entry::WRITABLE | entry::USER;

/// Pages of linear addresses from 0x10000, and what is behind each.
#[rustfmt::skip] // a table
pub const VIEWS: [u64; 6] = [
    0x7000 | entry::PRESENT | entry::USER,     // 0x10000 the scratch memory, to be read
    0,                                         // 0x11000 not present
    0x7000 | entry::PRESENT | entry::WRITABLE, // 0x12000 ring 0's
    LANDING | USER | entry::NX,                // 0x13000 no code
    0x20000 | USER,                            // 0x14000 no memory
    0x7000 | USER | 1 << 51,                   // 0x15000 a reserved bit
];

/// Page `number` of the linear addresses below [`MEMORY`].
fn mapping(number: u64) -> u64 {
    let rights = match number * PAGE {
        0 | TABLES..LANDING => return 0,
        HANDLERS => entry::PRESENT,
        IDT | 0x4000 => entry::PRESENT | entry::WRITABLE,
        LANDING => entry::PRESENT | entry::USER,
        _ => USER,
    };
    (number * PAGE) | rights
}

/// The memory of a setting, but for the instructions and the scratch pages.
pub fn pristine(setting: &Setting) -> Vec<u8> {
    let mut memory = Image(vec![0; MEMORY]);
    for page in [CODE, HANDLERS, LANDING] {
        memory.0[page as usize..(page + PAGE) as usize].fill(HLT);
    }
    if setting.protected {
        interrupts(&mut memory, setting);
        for (number, descriptor) in gdt(setting).into_iter().enumerate() {
            memory.put(GDT + number as u64 * 8, &descriptor.to_le_bytes());
        }
        let local = [0, 0x20, 0x40, 0x10].map(|selector| gdt(setting)[selector / 8].to_le_bytes());
        memory.put(LDT, &local.concat());
        task(&mut memory, setting);
    } else {
        for vector in 0..256 {
            memory.put(vector * 4, &((HANDLERS + vector * HANDLER) as u32).to_le_bytes());
        }
        for (number, descriptor) in gdt(&SETTINGS[1]).into_iter().enumerate() {
            memory.put(GDT + number as u64 * 8, &descriptor.to_le_bytes());
        }
    }
    page_tables(&mut memory, setting.paging);
    memory.0
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.0[address as usize..address as usize + bytes.len()].copy_from_slice(bytes);
    }
}

/// Interrupt gates for the exceptions, to ring 0; those of INT3 and INTO may be called by ring 3. The
/// double fault has a stack of its own in long mode.
fn interrupts(memory: &mut Image, setting: &Setting) {
    for vector in 0..32 {
        let handler = HANDLERS + vector * HANDLER;
        let access = if matches!(vector, 3 | 4) { 0xee } else { 0x8e };
        let selector: u64 = if setting.is_long() { 0x28 } else { 0x30 };
        let mut low = handler & 0xffff | selector << 16 | access << 40 | (handler >> 16 & 0xffff) << 48;
        if setting.is_long() {
            if vector == 8 {
                low |= 1 << 32;
            }
            memory.put(IDT + vector * 16, &low.to_le_bytes());
        } else {
            memory.put(IDT + vector * 8, &low.to_le_bytes());
        }
    }
}

/// The task state: ring 0's stack, and which ports ring 3 may use. Intel SDM Vol. 3A, "Task-State Segment
/// (TSS)" and "64-bit TSS" have the I/O map's address at the same place.
fn task(memory: &mut Image, setting: &Setting) {
    memory.put(TSS + 4, &KERNEL_STACK.to_le_bytes());
    if setting.is_long() {
        memory.put(TSS + 0x24, &DOUBLE_FAULT_STACK.to_le_bytes());
    } else {
        memory.put(TSS + 8, &0x10u16.to_le_bytes());
    }
    memory.put(TSS + 0x66, &0x68u16.to_le_bytes());
    for byte in 0..0x20 {
        memory.put(TSS + 0x68 + byte, &[if byte < 0x10 { 0 } else { 0xa5 }]);
    }
    memory.put(TSS + 0x68 + 0x20, &[0xff]);
}

fn page_tables(memory: &mut Image, paging: Paging) {
    let table = |number: u64| TABLES + number * PAGE;
    let levels = match paging {
        Paging::Off => return,
        Paging::Bits32 => {
            memory.put(TABLES, &((table(1) | USER) as u32).to_le_bytes());
            for number in 0..16 + VIEWS.len() as u64 {
                let entry = if number < 16 { mapping(number) } else { VIEWS[number as usize - 16] };
                // Entries of four bytes have no bit 51 and no bit 63.
                memory.put(table(1) + number * 4, &(entry as u32).to_le_bytes());
            }
            return;
        }
        Paging::Pae => 3,
        Paging::Levels4 => 4,
    };
    for level in 0..levels - 1 {
        // PAE's four pointers have no bits for rights.
        let rights = if levels == 3 && level == 0 { entry::PRESENT } else { USER };
        memory.put(table(level), &(table(level + 1) | rights).to_le_bytes());
    }
    for number in 0..16 + VIEWS.len() as u64 {
        let entry = if number < 16 { mapping(number) } else { VIEWS[number as usize - 16] };
        memory.put(table(levels - 1) + number * 8, &entry.to_le_bytes());
    }
}
