//! Exits: what [`crate::Vcpu::run`] comes back with.

/// Why the vCPU left the guest. What an exit carries beyond this lies in the
/// vCPU's data buffer: [`crate::Vcpu::data`] and [`crate::Vcpu::data_mut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest writes `count` items of `size` bytes to an I/O port; they are in the buffer.
    IoOut {
        /// The port.
        port: u16,
        /// Bytes an item: 1, 2 or 4.
        size: u8,
        /// Items.
        count: u32,
    },
    /// The guest reads; the next run takes the answer from the buffer.
    IoIn {
        /// The port.
        port: u16,
        /// Bytes an item: 1, 2 or 4.
        size: u8,
        /// Items.
        count: u32,
    },
    /// The guest reads guest-physical memory that no slot backs; the next run takes the answer from
    /// the buffer.
    MmioRead {
        /// Guest-physical.
        address: u64,
        /// Bytes, at most 8.
        size: u8,
    },
    /// The guest wrote to guest-physical memory that no slot backs, or a read-only one.
    MmioWrite {
        /// Guest-physical.
        address: u64,
        /// Bytes, at most 8.
        size: u8,
    },
    /// `hlt`.
    Hlt,
    /// A triple fault.
    Shutdown,
    /// The CPU does not enter this state.
    FailEntry {
        /// Intel's exit reason, with its highest bit set.
        reason: u64,
    },
    /// The guest can take an interrupt now, which the hypervisor wanted to know.
    IrqWindowOpen,
    /// The machine cannot go on; 1 is an instruction that it does not have, or cannot fetch.
    InternalError {
        /// KVM's number: `include/uapi/linux/kvm.h`.
        suberror: u32,
    },
    /// A single step, a breakpoint.
    Debug {
        /// 1 for the debug exception, 3 for `int3`.
        exception: u8,
        /// Where: the linear address of the next instruction; of `int3`, its own.
        pc: u64,
        /// What DR6 would say.
        dr6: u64,
        /// What DR7 holds: the hypervisor's, where it has given breakpoints, else the guest's.
        dr7: u64,
    },
    /// The instructions that one run may take are used up: run again.
    Budget,
    /// The guest waits in a `hlt`, no timer runs, and the interrupt controllers have nothing for it: only
    /// a line from outside can wake it.
    Idle,
}
