//! What firmware leaves in a CPU, and a kernel takes for granted: CPUID, a few
//! model-specific registers, the local APIC's two interrupt pins.

use anyhow::{Context, Result, ensure};

use crate::kvm::{
    Cap, CpuId, Kvm, MAX_CPUID_ENTRIES, Msrs, VcpuFd, kvm_cpuid_entry2, kvm_lapic_state, kvm_msr_entry,
};

/// Model-specific registers. Intel SDM Vol. 4, "Model-Specific Registers (MSRs)".
#[rustfmt::skip] // laid out like the SDM's table
mod msr {
    pub const SYSENTER_CS: u32    = 0x174;
    pub const SYSENTER_ESP: u32   = 0x175;
    pub const SYSENTER_EIP: u32   = 0x176;
    pub const MISC_ENABLE: u32    = 0x1a0;
    pub const MTRR_DEF_TYPE: u32  = 0x2ff;
    pub const STAR: u32           = 0xc000_0081;
    pub const LSTAR: u32          = 0xc000_0082;
    pub const CSTAR: u32          = 0xc000_0083;
    pub const FMASK: u32          = 0xc000_0084;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// IA32_MISC_ENABLE: fast string operations.
const FAST_STRINGS: u64 = 1 << 0;
/// IA32_MTRR_DEF_TYPE: memory types are on, and all memory is write-back.
const MTRRS_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the model-specific registers as firmware leaves them.
///
/// # Errors
/// When KVM refuses one of them.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    let values = [
        (msr::SYSENTER_CS, 0),
        (msr::SYSENTER_ESP, 0),
        (msr::SYSENTER_EIP, 0),
        (msr::STAR, 0),
        (msr::LSTAR, 0),
        (msr::CSTAR, 0),
        (msr::FMASK, 0),
        (msr::KERNEL_GS_BASE, 0),
        (msr::MISC_ENABLE, FAST_STRINGS),
        (msr::MTRR_DEF_TYPE, MTRRS_ON_WRITE_BACK),
    ];
    let entries = values.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    let msrs = Msrs::from_entries(&entries).ok().context("KVM takes ten registers at once")?;
    let set = vcpu.set_msrs(&msrs).context("KVM_SET_MSRS")?;
    ensure!(set == entries.len(), "KVM refuses the model-specific register {:#x}", entries[set].index);
    Ok(())
}

/// Sets CPUID: what the host's KVM can show, for a machine with this one CPU.
///
/// # Errors
/// The ioctl that failed, with its errno.
pub fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
    let supported = kvm.get_supported_cpuid(MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let mut entries = supported.as_slice().to_vec();
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in &mut entries {
        describe_one_cpu(entry, deadline_timer);
    }
    let cpuid = CpuId::from_entries(&entries).ok().context("KVM gave as many entries itself")?;
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")
}

// ANCHOR: one_cpu
/// The leaves that are about the CPU that `KVM_GET_SUPPORTED_CPUID` ran on, made
/// those of the only CPU of a machine, whose APIC ID is 0. Intel SDM Vol. 2A,
/// "CPUID—CPU Identification"; AMD APM Vol. 3, "Obtaining Processor Information Via
/// the CPUID Instruction".
fn describe_one_cpu(entry: &mut kvm_cpuid_entry2, deadline_timer: bool) {
    const DEADLINE_TIMER: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    match entry.function {
        0x1 => {
            // Initial APIC ID 0, one logical CPU, CLFLUSH size and brand kept.
            entry.ebx = entry.ebx & 0xffff | 1 << 16;
            entry.ecx |= HYPERVISOR;
            if deadline_timer {
                entry.ecx |= DEADLINE_TIMER;
            }
        }
        // Caches: one thread shares each, one core is in the package.
        0x4 => entry.eax &= 0x3fff,
        // The x2APIC ID, in every subleaf.
        0xb | 0x1f => entry.edx = 0,
        // The extended APIC ID.
        0x8000_001e => entry.eax = 0,
        _ => {}
    }
}
// ANCHOR_END: one_cpu

/// Wires the local APIC's two pins as a PC does: LINT0 to the 8259s, LINT1 to the
/// NMI line. Intel SDM Vol. 3A, "Local Vector Table".
///
/// # Errors
/// The ioctl that failed, with its errno.
pub fn set_lapic(vcpu: &VcpuFd) -> Result<()> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const EXT_INT: u8 = 0b111;
    const NMI: u8 = 0b100;
    let mut lapic = vcpu.get_lapic().context("KVM_GET_LAPIC")?;
    set_delivery_mode(&mut lapic, LVT_LINT0, EXT_INT);
    set_delivery_mode(&mut lapic, LVT_LINT1, NMI);
    vcpu.set_lapic(&lapic).context("KVM_SET_LAPIC")
}

/// Bits 10:8 of a register of the local vector table; its mask, bit 16, is cleared.
fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u8) {
    let second = (lapic.regs[register + 1] as u8) & !0b111 | mode;
    lapic.regs[register + 1] = second as _;
    lapic.regs[register + 2] = ((lapic.regs[register + 2] as u8) & !1) as _;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_about_the_hosts_cpu_becomes_one_about_the_only_cpu() {
        let mut leaf = kvm_cpuid_entry2 { function: 1, ebx: 0x0710_0800, ..kvm_cpuid_entry2::default() };
        describe_one_cpu(&mut leaf, true);
        assert_eq!((leaf.ebx, leaf.ecx), (0x0001_0800, 1 << 31 | 1 << 24));
        let mut caches = kvm_cpuid_entry2 { function: 4, eax: 0x1c00_4121, ..kvm_cpuid_entry2::default() };
        describe_one_cpu(&mut caches, true);
        assert_eq!(caches.eax, 0x0121);
    }

    #[test]
    fn a_pin_gets_its_delivery_mode_and_loses_its_mask() {
        let mut lapic = kvm_lapic_state { regs: [0; 1024] };
        // As after reset: masked. Intel SDM Vol. 3A, "Local APIC State After Power-Up or Reset".
        lapic.regs[0x352] = 1;
        set_delivery_mode(&mut lapic, 0x350, 0b111);
        assert_eq!(lapic.regs[0x350..0x354], [0, 7, 0, 0]);
    }
}
