//! The GDT and the TSS: chapters 05, 07 and 10. In 64-bit mode a segment says
//! little more than a ring.

use core::arch::asm;

use crate::global::Global;

/// Selectors, in the order that `syscall` and `sysret` want: kernel code and
/// data, then user data and code. Intel SDM Vol. 2B, "SYSCALL".
pub const KERNEL_CODE: u16 = 1 << 3;
pub const USER_DATA: u16 = 3 << 3 | 3;
pub const USER_CODE: u16 = 4 << 3 | 3;
const TASK: u16 = 5 << 3;
/// What `IA32_STAR` takes for the return: user data and code are 8 and 16 above it.
pub const USER_BASE: u16 = 2 << 3 | 3;

/// Which entry of the interrupt stack table the double fault uses.
pub const DOUBLE_FAULT_STACK: u8 = 1;

/// Intel SDM Vol. 3A, "64-Bit Task State Segment": as 32-bit words, because its
/// 64-bit fields are not aligned.
#[repr(C, align(16))]
struct TaskState([u32; 26]);

const RSP0: usize = 1;
const IST1: usize = 9;

#[repr(C, align(16))]
struct Stack([u8; 16384]);

static TASK_STATE: Global<TaskState> = Global::new(TaskState([0; 26]));
static DOUBLE_FAULT: Global<Stack> = Global::new(Stack([0; 16384]));
static GDT: Global<[u64; 7]> = Global::new([
    0,
    0x00af_9b00_0000_ffff, // 64-bit code, ring 0
    0x00cf_9300_0000_ffff, // writable data, ring 0
    0x00cf_f300_0000_ffff, // writable data, ring 3
    0x00af_fb00_0000_ffff, // 64-bit code, ring 3
    0,                     // the TSS takes two entries
    0,
]);

/// GDTR's or IDTR's value, as `lgdt` and `lidt` read it.
#[repr(C, packed)]
pub struct TablePointer {
    pub limit: u16,
    pub base: u64,
}

/// Loads GDT, TSS and all segment registers.
pub fn load() {
    let stack_end = DOUBLE_FAULT.as_ptr() as u64 + size_of::<Stack>() as u64;
    let mut task = TASK_STATE.get();
    set64(&mut task, IST1, stack_end);
    task.0[25] = (size_of::<TaskState>() as u32) << 16; // no I/O permission map
    drop(task);

    let base = TASK_STATE.as_ptr() as u64;
    let mut gdt = GDT.get();
    // Present, ring 0, an available 64-bit TSS (9), limit 0x67. SDM Vol. 3A, "TSS Descriptor in 64-bit mode".
    gdt[5] = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    gdt[6] = base >> 32;
    drop(gdt);
    let pointer = TablePointer { limit: 7 * 8 - 1, base: GDT.as_ptr() as u64 };
    // SAFETY: the descriptors are right, and the far return goes on at the next line.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "xor {data:e}, {data:e}",
            "mov fs, {data:e}",
            "mov gs, {data:e}",
            "ltr {task:x}",
            pointer = in(reg) &raw const pointer,
            code = const KERNEL_CODE,
            data = inout(reg) 2u32 << 3 => _,
            task = in(reg) TASK,
            scratch = out(reg) _,
        );
    }
}

/// Sets the stack that an exception in ring 3 brings the CPU to.
#[unsafe(no_mangle)]
extern "C" fn set_kernel_stack(end: u64) {
    set64(&mut TASK_STATE.get(), RSP0, end);
}

fn set64(task: &mut TaskState, word: usize, value: u64) {
    task.0[word] = value as u32;
    task.0[word + 1] = (value >> 32) as u32;
}
