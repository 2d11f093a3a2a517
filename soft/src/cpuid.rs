//! CPUID: what the hypervisor lets the guest see, and what this CPU can do.

use crate::cpu::Cpu;

/// An answer of CPUID: `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the registers' names
pub struct CpuidEntry {
    /// The leaf: EAX.
    pub function: u32,
    /// The subleaf: ECX.
    pub index: u32,
    /// Bit 0: the subleaf matters.
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

const SIGNIFICANT_INDEX: u32 = 1;

/// Leaf 7: SMAP.
const SMAP: u32 = 1 << 20;

impl Cpu {
    /// CPUID's answer: EAX, EBX, ECX and EDX. A leaf beyond the last answers as the last basic one does,
    /// where the hypervisor shows Intel's CPU. Intel SDM Vol. 2A, "CPUID".
    pub fn cpuid_answer(&self, function: u32, index: u32) -> [u32; 4] {
        let words = |entry: &CpuidEntry| [entry.eax, entry.ebx, entry.ecx, entry.edx];
        if let Some(entry) = self.find_cpuid(function, index) {
            return words(entry);
        }
        let largest = |start| self.find_cpuid(start, 0).map_or(0, |entry| entry.eax);
        let last = largest(function & 0xffff_0000);
        let known = function >= function & 0xffff_0000 && function <= last;
        if known || !self.shows_intel() {
            return [0; 4];
        }
        self.find_cpuid(largest(0), index).map_or([0; 4], words)
    }

    fn find_cpuid(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.cpuid.iter().find(|entry| {
            entry.function == function && (entry.flags & SIGNIFICANT_INDEX == 0 || entry.index == index)
        })
    }

    /// Whether the vendor's name in leaf 0 begins with "Genu".
    fn shows_intel(&self) -> bool {
        self.find_cpuid(0, 0).is_some_and(|entry| entry.ebx == u32::from_le_bytes(*b"Genu"))
    }

    /// Whether the guest was shown SMAP.
    pub fn has_cpuid_smap(&self) -> bool {
        self.find_cpuid(7, 0).is_some_and(|entry| entry.ebx & SMAP != 0)
    }

    /// The bits of a physical address: leaf 0x80000008, and 36 where it says nothing, as in KVM.
    pub fn physical_bits_shown(&self) -> u32 {
        let shown = self.find_cpuid(0x8000_0008, 0).map_or(0, |entry| entry.eax & 0xff);
        if (32..=52).contains(&shown) { shown } else { 36 }
    }
}

/// What this CPU can do, for a hypervisor to hand on: `KVM_GET_SUPPORTED_CPUID`.
#[must_use]
pub fn supported() -> Vec<CpuidEntry> {
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let bits = |numbers: &[u32]| numbers.iter().fold(0, |bits, number| bits | 1 << number);
    let leaf =
        |function, eax, ebx, ecx, edx| CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() };
    let mut entries = vec![
        leaf(0, 7, word(b"Genu"), word(b"ntel"), word(b"ineI")),
        leaf(
            1,
            // Family 6.
            0x0000_0600,
            // One CPU; CLFLUSH's line has 8 × 8 bytes.
            1 << 16 | 8 << 8,
            // CMPXCHG16B, MOVBE, POPCNT, a hypervisor.
            bits(&[13, 22, 23, 31]),
            // DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, PSE-36, CLFSH, FXSR, SSE, SSE2; no FPU, and
            // no MMX.
            bits(&[2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 24, 25, 26]),
        ),
    ];
    entries.push(CpuidEntry {
        flags: SIGNIFICANT_INDEX,
        // FSGSBASE, BMI1's TZCNT is shown by its own bit below; SMEP, SMAP; UMIP in ECX.
        ..leaf(7, 0, bits(&[0, 7, 20]), bits(&[2]), 0)
    });
    entries.push(leaf(0x8000_0000, 0x8000_0008, 0, 0, 0));
    // LAHF, LZCNT; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    entries.push(leaf(0x8000_0001, 0, 0, bits(&[0, 5]), bits(&[11, 20, 26, 27, 29])));
    let name = b"VM Exit software machine\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (number, part) in name.chunks(16).enumerate() {
        let at = |start: usize| {
            u32::from_le_bytes([part[start], part[start + 1], part[start + 2], part[start + 3]])
        };
        entries.push(leaf(0x8000_0002 + number as u32, at(0), at(4), at(8), at(12)));
    }
    // 40 physical and 48 linear bits.
    entries.push(leaf(0x8000_0008, 48 << 8 | 40, 0, 0, 0));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendor_is_spelled_as_intel_spells_it() {
        let leaf = supported()[0];
        let text: Vec<u8> =
            [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(text, b"GenuineIntel");
    }

    #[test]
    fn no_leaf_is_there_twice() {
        let mut leaves: Vec<_> = supported().iter().map(|entry| (entry.function, entry.index)).collect();
        leaves.dedup();
        assert_eq!(leaves.len(), supported().len());
    }
}
