//! The KVM at hand, and what its CPU does not do as the manual says. A row names
//! the rule, the manual's title and the test that covers it instead; what the row
//! is about is not compared on that referee, and is on the others.

use std::fmt;

use iced_x86::Mnemonic;

use crate::compare::Comparison;
use crate::subject::End;
use Referee::{Bochs, Emulator, Qemu, Silicon};

/// Whose CPU runs the KVM side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referee {
    /// QEMU's software CPU, the lab's AMD machine: kvm_amd over an emulated SVM.
    Qemu,
    /// Bochs, the lab's Intel machine: kvm_intel over an emulated VMX.
    Bochs,
    /// A KVM on a CPU without virtualization: its own emulator runs most of the guest.
    Emulator,
    /// A CPU.
    Silicon,
}

impl Referee {
    #[cfg(host_kvm)]
    pub fn at_hand() -> Self {
        use std::arch::x86_64::__cpuid;
        let hypervisor = __cpuid(0x4000_0000);
        if [hypervisor.ebx, hypervisor.ecx, hypervisor.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG"
        {
            return Self::Qemu;
        }
        let (vmx, svm) = (__cpuid(1).ecx >> 5 & 1 == 1, __cpuid(0x8000_0001).ecx >> 2 & 1 == 1);
        let is_guest = __cpuid(1).ecx >> 31 & 1 == 1;
        if !vmx && !svm {
            Self::Emulator
        } else if vmx && !is_guest && is_bochs() {
            Self::Bochs
        } else {
            Self::Silicon
        }
    }

    /// The first row of the table that is about this comparison.
    pub fn lacks(self, comparison: &Comparison) -> Option<&'static Lack> {
        LACKS.iter().find(|lack| lack.on.contains(&self) && (lack.applies)(comparison))
    }
}

/// Bochs shows the brand of a CPU that nobody runs under Linux's name for the lab's machine.
#[cfg(host_kvm)]
fn is_bochs() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains("lpj=1000000"))
}

impl fmt::Display for Referee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "KVM on QEMU's software CPU (AMD)",
            Self::Bochs => "KVM on Bochs (Intel)",
            Self::Emulator => "a KVM that emulates",
            Self::Silicon => "KVM on this CPU",
        })
    }
}

/// What a referee does not do.
pub struct Lack {
    pub on: &'static [Referee],
    pub what: &'static str,
    /// Where the manual says what it should do.
    pub manual: &'static str,
    /// The test that covers it instead: its file in `soft`, and its name.
    pub test: &'static str,
    applies: fn(&Comparison) -> bool,
}

/// VIF and VIP.
const VIRTUAL_INTERRUPTS: u64 = 3 << 19;

const INVALID_OPCODE: u8 = 6;
/// Where a sequence has damaged the table of interrupts.
const DOUBLE_FAULT: u8 = 8;
const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

fn is_segment_fault(vector: Option<u8>) -> bool {
    matches!(vector, Some(STACK_FAULT | GENERAL_PROTECTION))
}

#[rustfmt::skip] // a table
pub const LACKS: &[Lack] = &[
    Lack {
        on: &[Qemu],
        what: "limits and types of segments are not checked on data accesses",
        manual: "Intel SDM Vol. 3A, \"Limit Checking\" and \"Type Checking\"",
        test: "guests.rs: the_limit_of_a_segment_holds_in_real_mode_too_and_beyond_it_when_it_was_raised",
        // In ring 0 the exception may find no stack.
        applies: |c| !c.setting.is_64_bit() && (is_segment_fault(c.left_vector) || c.left.end == End::Shutdown),
    },
    Lack {
        on: &[Qemu],
        what: "a stack address that is not canonical is #GP and not #SS",
        manual: "Intel SDM Vol. 3A, \"Interrupt 12—Stack Fault Exception (#SS)\"",
        test: "manual.rs: an_address_that_is_not_canonical_is_a_stack_fault_on_the_stack",
        applies: |c| c.left_vector == Some(STACK_FAULT) && c.right_vector == Some(GENERAL_PROTECTION),
    },
    Lack {
        on: &[Qemu],
        what: "ENTER does not check that the new stack can be written",
        manual: "Intel SDM Vol. 2A, \"ENTER—Make Stack Frame for Procedure Parameters\"",
        test: "manual.rs: enter_checks_the_end_of_its_frame_before_it_changes_anything",
        applies: |c| c.is(Mnemonic::Enter),
    },
    Lack {
        on: &[Qemu],
        what: "the second encoding of TEST (f6 /1, f7 /1) is #UD; its address after RIP counts no immediate",
        manual: "AMD APM Vol. 3, \"Opcode and Operand Encodings\", the table of ModRM groups",
        test: "host_cpu.rs: instructions_do_what_this_cpu_does",
        applies: |c| {
            c.is(Mnemonic::Test)
                && (c.right_vector == Some(INVALID_OPCODE)
                    || c.both_page_faults() && c.step.instruction.is_ip_rel_memory_operand())
        },
    },
    Lack {
        on: &[Qemu],
        what: "in long mode the error code of a missing gate is twice as large",
        manual: "Intel SDM Vol. 3A, \"Error Code\"; Vol. 2A, \"INT n/INTO/INT3/INT1—Call to Interrupt Procedure\"",
        test: "manual.rs: an_interrupt_beyond_the_table_names_its_gate_in_the_error_code",
        applies: |c| c.is(Mnemonic::Int) && c.setting.is_long() && c.left_vector == Some(GENERAL_PROTECTION),
    },
    Lack {
        on: &[Qemu],
        what: "SYSENTER in long mode loads CS with D set beside L",
        manual: "Intel SDM Vol. 2B, \"SYSENTER—Fast System Call\"",
        test: "manual.rs: sysenter_loads_flat_segments",
        applies: |c| c.is(Mnemonic::Sysenter) && c.setting.is_long(),
    },
    Lack {
        on: &[Qemu],
        what: "an AMD CPU has SYSCALL and SYSRET outside 64-bit code too; the software machine is like Intel's",
        manual: "Intel SDM Vol. 2B, \"SYSCALL—Fast System Call\" and \"SYSRET—Return From Fast System Call\"",
        test: "manual.rs: syscall_and_sysret_are_for_64_bit_code",
        applies: |c| !c.setting.is_64_bit() && c.is_syscall(),
    },
    Lack {
        on: &[Qemu],
        what: "an AMD CPU makes near branches of 64-bit code with prefix 66 16-bit ones; the software machine is like Intel's",
        manual: "Intel SDM Vol. 2A, \"CALL—Call Procedure\", \"JMP—Jump\": the operand size is forced to 64 bits",
        test: "manual.rs: a_near_branch_of_64_bit_code_ignores_prefix_66",
        applies: |c| c.setting.is_64_bit() && c.is_near_branch() && c.has_prefix(0x66),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator, which does what touches no memory, lacks LZCNT and TZCNT: it scans as BSR and BSF",
        manual: "Intel SDM Vol. 2A, \"LZCNT—Count the Number of Leading Zero Bits\"; Vol. 2B, \"TZCNT\"",
        test: "host_cpu.rs: instructions_do_what_this_cpu_does",
        applies: |c| !c.left.answers.is_empty() && (c.is(Mnemonic::Lzcnt) || c.is(Mnemonic::Tzcnt)),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator reads a far pointer that is in no memory at once, not its offset first",
        manual: "Intel SDM Vol. 2A, \"LDS/LES/LFS/LGS/LSS—Load Far Pointer\" leaves the order of bus accesses open",
        test: "guests.rs: a_hole_is_read_and_written_by_exits_and_an_instruction_that_does_both_makes_two",
        applies: |c| !c.left.answers.is_empty() && c.loads_far_pointer(),
    },
    Lack {
        on: &[Qemu],
        what: "an AMD CPU loads no 64-bit far pointers: it ignores REX.W; the software machine is like Intel's",
        manual: "Intel SDM Vol. 2A, \"LDS/LES/LFS/LGS/LSS—Load Far Pointer\", \"JMP—Jump\", \"CALL—Call Procedure\": m16:64",
        test: "manual.rs: a_far_pointer_of_64_bit_code_has_64_bits_with_rex_w",
        applies: |c| c.setting.is_64_bit() && c.loads_far_pointer(),
    },
    Lack {
        on: &[Qemu],
        what: "a near branch to an address that is not canonical faults at its target",
        manual: "Intel SDM Vol. 2A, \"CALL—Call Procedure\" and \"JMP—Jump\": #GP(0) before anything is pushed",
        test: "manual.rs: a_branch_to_an_address_that_is_not_canonical_faults_where_it_is",
        applies: |c| c.setting.is_64_bit() && c.is_near_branch() && c.left_vector == Some(GENERAL_PROTECTION),
    },
    Lack {
        on: &[Qemu],
        what: "of an operand in two pages, one to be written and one missing, the missing one faults first",
        manual: "Intel SDM Vol. 3A, \"Interrupt 14—Page-Fault Exception (#PF)\" leaves open which page is reported",
        test: "manual.rs: an_operand_in_two_pages_faults_at_the_first_that_is_missing",
        applies: |c| c.both_page_faults() && c.right.sregs.cr2 >> 12 == (c.left.sregs.cr2 >> 12) + 1,
    },
    Lack {
        on: &[Qemu],
        what: "PUSHA, CMPS and ENTER touch memory in another order",
        manual: "Intel SDM Vol. 2B, \"PUSHA/PUSHAD\"; Vol. 2A, \"CMPS/CMPSB/CMPSW/CMPSD/CMPSQ—Compare String Operands\" say no order",
        test: "manual.rs: the_first_operand_of_cmps_is_the_first_to_fault",
        applies: |c| c.both_faulted() && c.touches_two_places(),
    },
    Lack {
        on: &[Qemu],
        what: "POPA has loaded the registers before the one whose page is missing",
        manual: "Intel SDM Vol. 3A, \"Restarting of Program or Task\", for a fault; Vol. 2B, \"POPA/POPAD—Pop All General-Purpose Registers\"",
        test: "manual.rs: popa_that_faults_has_loaded_nothing",
        applies: |c| (c.is(Mnemonic::Popa) || c.is(Mnemonic::Popad)) && c.both_faulted(),
    },
    Lack {
        on: &[Qemu],
        what: "KVM keeps the upper half of FMASK, which is reserved",
        manual: "AMD APM Vol. 2, \"SYSCALL and SYSRET MSRs\"; Intel SDM Vol. 4, \"Architectural MSRs\"",
        test: "manual.rs: the_upper_half_of_fmask_is_reserved",
        applies: |c| c.is(Mnemonic::Rdmsr) && c.before.rcx as u32 == 0xc000_0084,
    },
    Lack {
        on: &[Qemu, Bochs, Emulator],
        what: "KVM's emulator writes 16 bits where a segment register is pushed into a hole",
        manual: "Intel SDM Vol. 2B, \"PUSH—Push Word, Doubleword, or Quadword Onto the Stack\" leaves the upper half open",
        test: "manual.rs: a_segment_register_is_pushed_with_zeros_above_it",
        applies: |c| c.is(Mnemonic::Push) && c.step.instruction.op0_register().is_segment_register(),
    },
    Lack {
        on: &[Bochs],
        what: "the selector of a far pointer is read before its offset",
        manual: "Intel SDM Vol. 2A, \"LDS/LES/LFS/LGS/LSS—Load Far Pointer\" says no order",
        test: "the AMD machine of the lab, where the offset is first",
        applies: |c| c.both_page_faults() && c.loads_far_pointer(),
    },
    Lack {
        on: &[Qemu],
        what: "LGDT and LIDT in 64-bit code take a base that is not canonical",
        manual: "Intel SDM Vol. 2A, \"LGDT/LIDT—Load Global/Interrupt Descriptor Table Register\"",
        test: "manual.rs: a_table_at_an_address_that_is_not_canonical_is_refused",
        applies: |c| c.setting.is_64_bit() && (c.is(Mnemonic::Lgdt) || c.is(Mnemonic::Lidt)) && c.left_vector == Some(GENERAL_PROTECTION),
    },
    Lack {
        on: &[Qemu],
        what: "bit 12 of DR6 can be set",
        manual: "Intel SDM Vol. 3B, \"Debug Status Register (DR6)\": it is always 0",
        test: "manual.rs: the_reserved_bits_of_dr6_cannot_be_changed",
        applies: |c| c.is(Mnemonic::Mov) && c.step.instruction.op1_register().is_dr(),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "an operand that wraps around at 4 GiB in a segment of 4 GiB may fault or not",
        manual: "Intel SDM Vol. 3A, \"Limit Checking\": implementation-specific",
        test: "guests.rs: the_limit_of_a_segment_holds_in_real_mode_too_and_beyond_it_when_it_was_raised",
        applies: |c| !c.setting.is_64_bit() && is_segment_fault(c.left_vector) && (c.right.sregs.cr2 >= 0xffff_fff0 || c.operand_address().is_some_and(|at| at as u32 >= 0xffff_fff0)),
    },
    Lack {
        on: &[Qemu],
        what: "SHLD and SHRD with an immediate count their address from a byte before the next instruction",
        manual: "Intel SDM Vol. 2A, \"RIP-Relative Addressing\"",
        test: "manual.rs: an_address_from_rip_counts_from_behind_the_immediate",
        applies: |c| (c.is(Mnemonic::Shld) || c.is(Mnemonic::Shrd)) && c.step.instruction.is_ip_rel_memory_operand(),
    },
    Lack {
        on: &[Qemu],
        what: "WRMSR puts an address that is not canonical into LSTAR and the like",
        manual: "Intel SDM Vol. 2D, \"WRMSR—Write to Model Specific Register\"",
        test: "manual.rs: wrmsr_refuses_an_address_that_is_not_canonical",
        applies: |c| c.is(Mnemonic::Wrmsr) && c.left_vector == Some(GENERAL_PROTECTION),
    },
    Lack {
        on: &[Qemu],
        what: "an interrupt by an IST stack in ring 0 leaves SS null",
        manual: "Intel SDM Vol. 2A, \"INT n/INTO/INT3/INT1—Call to Interrupt Procedure\", intra-privilege-level interrupt",
        test: "manual.rs: an_ist_stack_in_ring_0_leaves_ss_alone",
        applies: |c| c.left_vector == Some(8) && c.right_vector == Some(8) && c.setting.is_long(),
    },
    Lack {
        on: &[Qemu, Bochs],
        what: "IRET to a stack segment that is not present is #NP and not #SS",
        manual: "AMD APM Vol. 3, \"IRET\" and \"RETF\": #SS(selector); Intel SDM Vol. 2A, \"IRET/IRETD/IRETQ—Interrupt Return\", says both",
        test: "manual.rs: a_return_to_a_stack_that_is_not_present_is_a_stack_fault",
        applies: |c| c.left_vector == Some(STACK_FAULT) && c.right_vector == Some(11),
    },
    Lack {
        on: &[Qemu],
        what: "RCL and RCR of memory change CF before they write, and rotate it in again after a page fault that KVM mends",
        manual: "Intel SDM Vol. 2B, \"RCL/RCR/ROL/ROR—Rotate\"",
        test: "host_cpu.rs: instructions_do_what_this_cpu_does",
        applies: |c| (c.is(Mnemonic::Rcl) || c.is(Mnemonic::Rcr)) && c.step.instruction.op0_register() == iced_x86::Register::None,
    },
    Lack {
        on: &[Bochs],
        what: "IRET of 16 or 32 bits in 64-bit code to the same ring pops no SS and RSP",
        manual: "Intel SDM Vol. 2A, \"IRET/IRETD/IRETQ—Interrupt Return\", IA-32e mode",
        test: "manual.rs: iret_in_64_bit_code_pops_the_stack_in_every_size",
        applies: |c| c.setting.is_64_bit() && (c.is(Mnemonic::Iret) || c.is(Mnemonic::Iretd)),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator reads a hole before STR, SLDT and SMSW write it",
        manual: "Intel SDM Vol. 2B, \"STR—Store Task Register\": the destination is written",
        test: "manual.rs: a_store_of_a_selector_into_a_hole_is_one_write",
        applies: |c| !c.right.answers.is_empty() && (c.is(Mnemonic::Str) || c.is(Mnemonic::Sldt) || c.is(Mnemonic::Smsw)),
    },
    Lack {
        on: &[Qemu],
        what: "CLFLUSH is not checked for its address",
        manual: "Intel SDM Vol. 2A, \"CLFLUSH—Flush Cache Line\": faults as a load of a byte does",
        test: "manual.rs: clflush_faults_as_a_load_does",
        applies: |c| c.is(Mnemonic::Clflush) || c.is(Mnemonic::Clflushopt),
    },
    Lack {
        on: &[Qemu],
        what: "a far CALL pushes with ring 0's rights",
        manual: "Intel SDM Vol. 3A, \"Access Rights\": a user-mode access",
        test: "manual.rs: a_far_call_in_ring_3_pushes_with_the_rights_of_ring_3",
        applies: |c| c.is(Mnemonic::Call) && c.setting.ring == 3 && c.left_vector == Some(PAGE_FAULT),
    },
    Lack {
        on: &[Qemu],
        what: "LTR takes the null selector",
        manual: "Intel SDM Vol. 2A, \"LTR—Load Task Register\": #GP(0)",
        test: "manual.rs: ltr_refuses_the_null_selector",
        applies: |c| c.is(Mnemonic::Ltr) && c.left_vector == Some(GENERAL_PROTECTION) && c.right.sregs.tr.selector & !3 == 0,
    },
    Lack {
        on: &[Qemu],
        what: "the selector of a far pointer at the end of 64 KiB does not wrap to their start",
        manual: "Intel SDM Vol. 2A, \"LDS/LES/LFS/LGS/LSS—Load Far Pointer\" says nothing of it",
        test: "the Intel machine of the lab, where it does",
        applies: |c| c.loads_far_pointer() && c.operand_address().is_some_and(|at| at & 0xffff >= 0xfffa),
    },
    Lack {
        on: &[Qemu],
        what: "KVM, which emulates MOV to a control register there, drops the upper half",
        manual: "Intel SDM Vol. 2A, \"MOV—Move to/from Control Registers\": #GP(0) for a reserved bit",
        test: "manual.rs: a_reserved_bit_of_a_control_register_is_refused",
        applies: |c| c.setting.is_64_bit() && c.is(Mnemonic::Mov) && c.step.instruction.op0_register().is_cr(),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator asks the port anew after each write of INS into a hole",
        manual: "KVM's own: what was read ahead is lost at the exit",
        test: "guests.rs: string_input_into_a_hole_is_written_eight_bytes_at_a_time",
        applies: |c| c.is_port_string() && c.right.answers.len() > 1,
    },
    Lack {
        on: &[Bochs],
        what: "REX.R makes another segment register of that in ModRM, and #UD",
        manual: "Intel SDM Vol. 2A, \"REX Prefixes\": ignored",
        test: "manual.rs: rex_r_does_not_change_a_segment_register",
        applies: |c| c.setting.is_64_bit() && c.is(Mnemonic::Mov) && c.right_vector == Some(INVALID_OPCODE),
    },
    Lack {
        on: &[Bochs],
        what: "ENTER and LEAVE in 64-bit code ignore prefix 66",
        manual: "Intel SDM Vol. 2A, \"ENTER—Make Stack Frame for Procedure Parameters\" and \"LEAVE—High Level Procedure Exit\"",
        test: "manual.rs: leave_with_16_bit_operands_pops_16_bits",
        applies: |c| {
            c.setting.is_64_bit() && (c.is(Mnemonic::Enter) || c.is(Mnemonic::Leave)) && c.has_prefix(0x66)
        },
    },
    Lack {
        on: &[Bochs],
        what: "SSE's alignment is checked before the limit of SS",
        manual: "Intel SDM Vol. 3A, \"Priority Among Simultaneous Exceptions and Interrupts\": faults of one instruction have no order among them",
        test: "manual.rs: an_sse_operand_that_is_not_aligned_is_a_general_protection_fault",
        applies: |c| c.uses_sse() && c.left_vector == Some(STACK_FAULT) && c.right_vector == Some(GENERAL_PROTECTION),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator takes 16 bytes that begin in memory and end in a hole apart at the page, not in the middle",
        manual: "Intel SDM Vol. 1, \"Memory Alignment\" leaves open how an operand is read",
        test: "guests.rs: a_hole_is_read_and_written_by_exits_and_an_instruction_that_does_both_makes_two",
        applies: |c| c.uses_sse() && !c.right.answers.is_empty() && c.operand_address().is_some_and(|at| at & 0xf != 0),
    },
    Lack {
        on: &[Qemu],
        what: "MXCSR's DE is not set by a denormal operand, nor is there an exception for it",
        manual: "Intel SDM Vol. 1, \"Denormal-Operand Exception (#D)\"",
        test: "host_cpu.rs: instructions_do_what_this_cpu_does",
        applies: |c| c.left_vector == Some(19) || c.is(Mnemonic::Stmxcsr) || c.is(Mnemonic::Fxsave) || c.is(Mnemonic::Fxsave64),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator, which scans where no memory is, keeps the flags of the items before a page fault",
        manual: "Intel SDM Vol. 2B, \"REP/REPE/REPZ/REPNE/REPNZ—Repeat String Operation Prefix\": the flags are restored",
        test: "manual.rs: a_page_fault_in_a_repeated_scan_restores_the_flags",
        applies: |c| c.both_page_faults() && c.scans(),
    },
    Lack {
        on: &[Qemu],
        what: "SS takes a null selector of another ring in 64-bit code",
        manual: "Intel SDM Vol. 2A, \"MOV—Move\": #GP(0) where its RPL is not the CPL",
        test: "manual.rs: a_null_ss_of_64_bit_code_must_be_of_its_ring",
        applies: |c| {
            c.setting.is_64_bit() && c.left_vector == Some(GENERAL_PROTECTION) && c.right.sregs.ss.selector & !3 == 0
        },
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator pops other than POPA's eight registers from a stack that is in no memory, and pushes PUSHA's in its own way",
        manual: "Intel SDM Vol. 2B, \"POPA/POPAD—Pop All General-Purpose Registers\"; \"PUSHA/PUSHAD\"",
        test: "manual.rs: popa_from_a_hole_reads_eight_times",
        applies: |c| !c.left.answers.is_empty() && c.moves_all_registers(),
    },
    Lack {
        on: &[Bochs, Silicon],
        what: "KVM takes the low byte of what is moved to CR8",
        manual: "Intel SDM Vol. 2A, \"MOV—Move to/from Control Registers\": #GP(0) for a reserved bit",
        test: "manual.rs: a_reserved_bit_of_a_control_register_is_refused",
        applies: |c| c.step.instruction.op0_register() == iced_x86::Register::CR8,
    },
    Lack {
        on: &[Bochs, Emulator, Silicon],
        what: "in KVM's emulator, which does ports and holes, a prefix for CS, DS, ES or SS undoes one for FS or GS",
        manual: "AMD APM Vol. 3, \"Segment-Override Prefixes\"",
        test: "decode.rs: in_64_bit_mode_a_prefix_for_es_leaves_the_base_to_choose_the_segment",
        applies: |c| {
            c.setting.is_64_bit() && c.has_two_segment_prefixes() && !c.left.answers.is_empty()
        },
    },
    Lack {
        on: &[Qemu],
        what: "LGDT and LIDT with prefix 66 load 24 bits of the base in 64-bit code too",
        manual: "Intel SDM Vol. 2A, \"LGDT/LIDT—Load Global/Interrupt Descriptor Table Register\": the operand size is fixed at 8 + 2 bytes",
        test: "manual.rs: lgdt_of_64_bit_code_ignores_prefix_66",
        applies: |c| {
            c.setting.is_64_bit() && (c.is(Mnemonic::Lgdt) || c.is(Mnemonic::Lidt)) && c.has_prefix(0x66)
        },
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM's emulator stores a segment register into a hole as wide as the operand size",
        manual: "Intel SDM Vol. 2A, \"MOV—Move\": 16 bits, whatever the operand size",
        test: "manual.rs: a_store_of_a_selector_into_a_hole_is_one_write",
        applies: |c| c.is(Mnemonic::Mov) && c.step.instruction.op1_register().is_segment_register(),
    },
    Lack {
        on: &[Qemu, Bochs, Emulator, Silicon],
        what: "KVM delivers no exception to a stack that is in no memory",
        manual: "KVM's own: its emulator cannot",
        test: "the software machine writes the frame as an exit each",
        applies: |c| {
            !c.left.answers.is_empty() && c.left_vector.is_some() && (0x13f00..0x15100).contains(&c.before.rsp)
        },
    },
    Lack {
        on: &[Qemu],
        what: "INT1 is #UD",
        manual: "Intel SDM Vol. 2A, \"INT n/INTO/INT3/INT1—Call to Interrupt Procedure\"",
        test: "manual.rs: int1_is_a_debug_exception_behind_the_instruction",
        applies: |c| c.is(Mnemonic::Int1),
    },
    Lack {
        on: &[Qemu],
        what: "SSE's operands in memory need no alignment",
        manual: "Intel SDM Vol. 1, \"Memory Alignment\" of SSE instructions; Vol. 2A, \"Exceptions Type 4\"",
        test: "manual.rs: an_sse_operand_that_is_not_aligned_is_a_general_protection_fault",
        applies: |c| c.uses_sse() && matches!(c.left_vector, Some(GENERAL_PROTECTION | DOUBLE_FAULT)),
    },
    Lack {
        on: &[Qemu],
        what: "a prefix for CS, DS, ES or SS, which 64-bit code ignores, undoes one for FS or GS before it",
        manual: "AMD APM Vol. 3, \"Segment-Override Prefixes\"",
        test: "decode.rs: in_64_bit_mode_a_prefix_for_es_leaves_the_base_to_choose_the_segment",
        applies: |c| c.setting.is_64_bit() && c.has_two_segment_prefixes(),
    },
    Lack {
        on: &[Qemu],
        what: "SYSCALL clears the status flags",
        manual: "Intel SDM Vol. 2B, \"SYSCALL—Fast System Call\"",
        test: "manual.rs: syscall_keeps_the_flags_that_sfmask_leaves",
        applies: |c| c.is(Mnemonic::Syscall),
    },
    Lack {
        on: &[Qemu],
        what: "IRET and SYSRET do not load VIF and VIP",
        manual: "Intel SDM Vol. 2A, \"IRET/IRETD/IRETQ—Interrupt Return\"; Vol. 2B, \"SYSRET—Return From Fast System Call\"",
        test: "manual.rs: iret_and_sysret_load_vif_and_vip",
        applies: |c| c.returns_flags() && (c.left.regs.rflags ^ c.right.regs.rflags) & VIRTUAL_INTERRUPTS != 0,
    },
    Lack {
        on: &[Qemu],
        what: "MOVBE moves 32 bits in 16-bit code, and 16 with prefix 66 beside REX.W",
        manual: "Intel SDM Vol. 2B, \"MOVBE—Move Data After Swapping Bytes\"",
        test: "manual.rs: movbe_in_16_bit_code_moves_16_bits",
        applies: |c| c.is(Mnemonic::Movbe) && (c.setting.bits == 16 || c.has_prefix(0x66)),
    },
    Lack {
        on: &[Qemu],
        what: "a hint with a register (0f 18 /0 to /3) is #UD",
        manual: "Intel SDM Vol. 2D, \"Opcode Map\", group 16: it does nothing",
        test: "manual.rs: a_reserved_hint_does_nothing",
        applies: |c| c.is(Mnemonic::Reservednop) && c.right_vector == Some(INVALID_OPCODE),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_that_the_table_names_is_there() {
        let soft = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("soft");
        for lack in LACKS {
            let Some((file, name)) = lack.test.split_once(": ") else { continue };
            let found = ["tests", "src"].iter().any(|folder| {
                std::fs::read_to_string(soft.join(folder).join(file))
                    .is_ok_and(|text| text.contains(&format!("fn {name}()")))
            });
            assert!(found, "{} names {}, which is not there", lack.what, lack.test);
        }
    }
}
