//! A machine for guests that the compiler assembles into the test's own data.
#![allow(dead_code, reason = "each test file uses its part")]

use std::alloc::{Layout, alloc_zeroed};

use vmexit_soft::{Exit, Machine, Regs, Segment, Slot, Sregs, Vcpu};

pub const START: u64 = 0x1000;
pub const MEMORY: usize = 0x40_0000;

/// Assembles a guest for address 0x1000. Labels are addresses in the test's own memory, so the guest
/// writes `label - NAME_start + 0x1000`, which `at(label)` stands for.
macro_rules! guest {
    ($name:ident, $($line:literal)*) => {{
        mod guest {
            std::arch::global_asm!(
                concat!(".pushsection .rodata.", stringify!($name)),
                concat!(".globl ", stringify!($name), "_start, ", stringify!($name), "_end"),
                concat!(stringify!($name), "_start:"),
                $($line,)*
                ".code64",
                concat!(stringify!($name), "_end:"),
                ".popsection",
            );
        }
        unsafe extern "C" {
            #[link_name = concat!(stringify!($name), "_start")]
            static GUEST_START: u8;
            #[link_name = concat!(stringify!($name), "_end")]
            static GUEST_END: u8;
        }
        // SAFETY: both symbols are of the section above, the end behind the start.
        unsafe {
            let (start, end) = (&raw const GUEST_START, &raw const GUEST_END);
            std::slice::from_raw_parts(start, end.offset_from(start) as usize)
        }
    }};
}

/// A machine with 4 MiB of memory at 0 and one CPU.
pub struct Guest {
    pub vcpu: Vcpu,
    pub memory: *mut u8,
    pub machine: Machine,
}

impl Guest {
    pub fn new(code: &[u8]) -> Self {
        Self::on(Machine::new(), code)
    }

    /// On a machine that has a PC's interrupt controllers and timer; real mode, all segments at 0.
    pub fn with_chipset(code: &[u8]) -> Self {
        let machine = Machine::new();
        machine.create_irq_chip().expect("the first");
        machine.create_pit().expect("the first");
        Self::on(machine, code).in_real_mode()
    }

    fn on(machine: Machine, code: &[u8]) -> Self {
        let layout = Layout::from_size_align(MEMORY, 4096).expect("a size and a power of two");
        // SAFETY: the layout's size is not 0; the memory is never given back.
        let memory = unsafe { alloc_zeroed(layout) };
        assert!(!memory.is_null());
        let slot = Slot {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory as u64,
            ..Slot::default()
        };
        // SAFETY: the memory is never given back.
        unsafe { machine.set_slot(slot) }.expect("a good slot");
        let vcpu = machine.create_vcpu(0);
        let mut guest = Self { vcpu, memory, machine };
        guest.write(START, code);
        let mut regs = guest.vcpu.regs();
        (regs.rip, regs.rsp, regs.rdx) = (START, 0x8000, 0);
        guest.vcpu.set_regs(&regs);
        guest
    }

    /// Real mode, all segments at 0.
    pub fn real(code: &[u8]) -> Self {
        Self::new(code).in_real_mode()
    }

    fn in_real_mode(mut self) -> Self {
        let mut sregs = self.vcpu.sregs();
        sregs.cs = Segment { selector: 0, base: 0, ..sregs.cs };
        self.vcpu.set_sregs(&sregs).expect("real mode");
        self
    }

    /// Ring 0, flat segments, 32-bit code.
    pub fn protected(code: &[u8]) -> Self {
        let mut guest = Self::new(code);
        let sregs = Sregs { cr0: 0x11, ..flat(guest.vcpu.sregs()) };
        guest.vcpu.set_sregs(&sregs).expect("protected mode");
        guest
    }

    /// Ring 0, 64-bit code, the first 2 MiB mapped to themselves by page tables at 0x100000: the first
    /// with pages of 4 KiB.
    pub fn long(code: &[u8]) -> Self {
        Self::new(code).in_long_mode()
    }

    /// Puts it there, whatever it was in.
    pub fn in_long_mode(self) -> Self {
        let mut guest = self;
        let mut sregs = flat(guest.vcpu.sregs());
        (sregs.cs.l, sregs.cs.db) = (1, 0);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0011, 0x10_0000, 0x20, 0xd01);
        guest.write(0x10_0000, &0x10_1007u64.to_le_bytes());
        guest.write(0x10_1000, &0x10_2007u64.to_le_bytes());
        guest.write(0x10_2000, &0x10_3007u64.to_le_bytes());
        for page in 0..512u64 {
            guest.write(0x10_3000 + page * 8, &(page << 12 | 7).to_le_bytes());
        }
        guest.vcpu.set_sregs(&sregs).expect("long mode");
        guest
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        assert!(address as usize + bytes.len() <= MEMORY);
        // SAFETY: the range lies in the memory.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(address as usize), bytes.len())
        }
    }

    pub fn read(&self, address: u64) -> u64 {
        assert!(address as usize + 8 <= MEMORY);
        // SAFETY: the range lies in the memory.
        unsafe { self.memory.add(address as usize).cast::<u64>().read_unaligned() }
    }

    /// Runs it to its next exit, which no guest here takes a hundred million instructions to.
    pub fn run(&mut self) -> Exit {
        for _ in 0..50 {
            match self.vcpu.run(false).expect("nobody interrupts it") {
                Exit::Budget => {}
                exit => return exit,
            }
        }
        panic!("it does not exit: {:x?}", self.vcpu.regs())
    }

    /// Runs it to its `hlt`.
    pub fn finish(&mut self) -> Regs {
        let exit = self.run();
        assert_eq!(exit, Exit::Hlt, "{:x?}\n{:x?}", self.vcpu.regs(), self.vcpu.sregs());
        self.vcpu.regs()
    }
}

pub fn flat(sregs: Sregs) -> Sregs {
    let data = Segment {
        selector: 0x10,
        limit: u32::MAX,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    let cs = Segment { selector: 8, type_: 11, ..data };
    Sregs { cs, ds: data, es: data, fs: data, gs: data, ss: data, ..sregs }
}
