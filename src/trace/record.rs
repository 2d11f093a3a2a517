//! The schema of the JSON trace: what the run loop tells checks, pictures and
//! players. One record a line; within a [`VERSION`], fields are only added.
//!
//! Numbers of 64 bits are strings in hexadecimal (`"0x3f8"`), because JSON's
//! own are exact to 53 bits only. Bytes are strings of hexadecimal pairs
//! (`"b002"`). The book's page "The trace" shows each record.

use serde::{Deserialize, Serialize};

use crate::kvm::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

// ANCHOR: record
/// The version of the schema, in the first record of every trace.
pub const VERSION: u32 = 1;

/// A line of the trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Record {
    /// The first line: what ran.
    Run(RunRecord),
    /// The guest's names.
    Image(ImageRecord),
    /// A vCPU's first entry: all that is needed to enter the same guest again.
    Entry(EntryRecord),
    /// An instruction, with `--steps`.
    Step(StepRecord),
    /// A return of KVM_RUN.
    Exit(ExitRecord),
    /// The hypervisor changed the registers of a guest that has run.
    Set(SetRecord),
    /// The last line: how it ended.
    End(EndRecord),
}
// ANCHOR_END: record

// ANCHOR: run
/// What ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub version: u32,
    /// The binary: `ch05`.
    pub chapter: String,
    /// The broken variant that ran, if one did.
    pub variant: Option<String>,
}
// ANCHOR_END: run

// ANCHOR: image
/// The guest's names, as its ELF file has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub entry: Hex,
    pub symbols: Vec<SymbolRecord>,
}

/// A name, and the guest-physical address that it stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SymbolRecord {
    pub name: String,
    pub address: Hex,
}
// ANCHOR_END: image

// ANCHOR: entry
/// The state of a vCPU and its VM before the first entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryRecord {
    pub vm: u32,
    pub vcpu: u64,
    pub registers: Registers,
    pub system: SystemRegisters,
    /// The memory slots.
    pub slots: Vec<SlotRecord>,
    /// Every page of them that is not all zero.
    pub pages: Vec<PageRecord>,
}

/// A memory slot: guest-physical address and size in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotRecord {
    pub address: Hex,
    pub size: Hex,
}

/// 4096 bytes of guest memory at a guest-physical address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageRecord {
    pub address: Hex,
    pub bytes: Bytes,
}
// ANCHOR_END: entry

// ANCHOR: step
/// One instruction that the guest executed without an exit to user space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    pub vm: u32,
    pub vcpu: u64,
    /// Counted from 1 over the whole run.
    pub step: u64,
    pub at: PlaceRecord,
    /// The registers that the instruction left; absent where the CPU ran the next one too
    /// before it stopped.
    pub registers: Option<Registers>,
    pub system: Option<SystemRegisters>,
}
// ANCHOR_END: step

// ANCHOR: exit
/// One return of KVM_RUN, with the instruction that caused it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub vm: u32,
    pub vcpu: u64,
    /// Counted from 1 over the whole run.
    pub exit: u64,
    pub reason: ReasonRecord,
    /// What it carried, in words: `out 0x3f8 <- 0x35 '5'`.
    pub text: String,
    /// The port, for port I/O.
    pub port: Option<u16>,
    /// The guest-physical address, for MMIO.
    pub address: Option<Hex>,
    /// `read` (the host answers) or `write`, for port I/O and MMIO.
    pub direction: Option<Direction>,
    /// Bytes an item.
    pub size: Option<u8>,
    /// What was written, or what the host answered: the run's only input.
    pub data: Option<Bytes>,
    /// The instruction that caused it; absent after SHUTDOWN.
    pub at: Option<PlaceRecord>,
    /// The registers at the exit, RIP at the instruction that caused it; absent after SHUTDOWN.
    pub registers: Option<Registers>,
    pub system: Option<SystemRegisters>,
}

// ANCHOR: set
/// Registers that the hypervisor has set since the last exit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetRecord {
    pub vm: u32,
    pub vcpu: u64,
    /// As given to KVM_SET_REGS, where that was called.
    pub registers: Option<Registers>,
    /// As given to KVM_SET_SREGS, where that was called.
    pub system: Option<SystemRegisters>,
}
// ANCHOR_END: set

/// Which way the data went, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The guest reads, the host answers.
    Read,
    /// The guest writes.
    Write,
}

/// An exit's names and numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReasonRecord {
    pub kvm: NameRecord,
    pub intel: Option<NameRecord>,
    pub amd: Option<NameRecord>,
}

/// A name and its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NameRecord {
    pub name: String,
    pub number: u32,
}
// ANCHOR_END: exit

// ANCHOR: place
/// A point of the guest's code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaceRecord {
    pub mode: String,
    pub ring: u8,
    pub cs: u16,
    pub rip: Hex,
    /// CS base plus RIP.
    pub linear: Hex,
    pub bytes: Bytes,
    /// The instruction; absent where no memory is, or no instruction.
    pub text: Option<String>,
    /// The nearest name before it, with the distance: `loop+0x4`.
    pub symbol: Option<String>,
}
// ANCHOR_END: place

// ANCHOR: end
/// How the run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndRecord {
    /// The program's exit code.
    pub code: u8,
    pub exits: u64,
    pub steps: u64,
}
// ANCHOR_END: end

// ANCHOR: registers
/// The general-purpose registers, RIP and RFLAGS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[rustfmt::skip] // four a line
pub struct Registers {
    pub rax: Hex, pub rbx: Hex, pub rcx: Hex, pub rdx: Hex,
    pub rsi: Hex, pub rdi: Hex, pub rsp: Hex, pub rbp: Hex,
    pub r8:  Hex, pub r9:  Hex, pub r10: Hex, pub r11: Hex,
    pub r12: Hex, pub r13: Hex, pub r14: Hex, pub r15: Hex,
    pub rip: Hex, pub rflags: Hex,
}

/// The segment, descriptor-table and control registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemRegisters {
    pub cr0: Hex,
    pub cr2: Hex,
    pub cr3: Hex,
    pub cr4: Hex,
    pub cr8: Hex,
    pub efer: Hex,
    pub apic_base: Hex,
    pub cs: SegmentRecord,
    pub ds: SegmentRecord,
    pub es: SegmentRecord,
    pub fs: SegmentRecord,
    pub gs: SegmentRecord,
    pub ss: SegmentRecord,
    pub tr: SegmentRecord,
    pub ldt: SegmentRecord,
    pub gdt: TableRecord,
    pub idt: TableRecord,
}

/// A segment register with its hidden part; the fields are kvm_segment's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentRecord {
    pub selector: u16,
    pub base: Hex,
    pub limit: u32,
    #[serde(rename = "type")]
    pub type_: u8,
    pub s: u8,
    pub dpl: u8,
    pub present: u8,
    pub l: u8,
    pub db: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// GDTR or IDTR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableRecord {
    pub base: Hex,
    pub limit: u16,
}
// ANCHOR_END: registers

/// A number as `"0x3f8"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Hex(pub u64);

impl From<Hex> for String {
    fn from(Hex(number): Hex) -> Self {
        format!("{number:#x}")
    }
}

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").ok_or_else(|| format!("{text:?} does not begin with 0x"))?;
        u64::from_str_radix(digits, 16).map(Self).map_err(|error| format!("{text:?}: {error}"))
    }
}

/// Bytes as `"b002"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bytes(pub Vec<u8>);

impl From<Bytes> for String {
    fn from(Bytes(bytes): Bytes) -> Self {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(format!("{text:?} is no string of hexadecimal pairs"));
        }
        let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
        let bytes = (0..text.len()).step_by(2).map(pair).collect::<Result<_, _>>();
        bytes.map(Self).map_err(|error| format!("{text:?}: {error}"))
    }
}

impl From<&kvm_regs> for Registers {
    #[rustfmt::skip] // four a line
    fn from(r: &kvm_regs) -> Self {
        Self {
            rax: Hex(r.rax), rbx: Hex(r.rbx), rcx: Hex(r.rcx), rdx: Hex(r.rdx),
            rsi: Hex(r.rsi), rdi: Hex(r.rdi), rsp: Hex(r.rsp), rbp: Hex(r.rbp),
            r8:  Hex(r.r8),  r9:  Hex(r.r9),  r10: Hex(r.r10), r11: Hex(r.r11),
            r12: Hex(r.r12), r13: Hex(r.r13), r14: Hex(r.r14), r15: Hex(r.r15),
            rip: Hex(r.rip), rflags: Hex(r.rflags),
        }
    }
}

impl From<&kvm_sregs> for SystemRegisters {
    fn from(s: &kvm_sregs) -> Self {
        Self {
            cr0: Hex(s.cr0),
            cr2: Hex(s.cr2),
            cr3: Hex(s.cr3),
            cr4: Hex(s.cr4),
            cr8: Hex(s.cr8),
            efer: Hex(s.efer),
            apic_base: Hex(s.apic_base),
            cs: (&s.cs).into(),
            ds: (&s.ds).into(),
            es: (&s.es).into(),
            fs: (&s.fs).into(),
            gs: (&s.gs).into(),
            ss: (&s.ss).into(),
            tr: (&s.tr).into(),
            ldt: (&s.ldt).into(),
            gdt: (&s.gdt).into(),
            idt: (&s.idt).into(),
        }
    }
}

impl From<&kvm_segment> for SegmentRecord {
    fn from(s: &kvm_segment) -> Self {
        Self {
            selector: s.selector,
            base: Hex(s.base),
            limit: s.limit,
            type_: s.type_,
            s: s.s,
            dpl: s.dpl,
            present: s.present,
            l: s.l,
            db: s.db,
            g: s.g,
            avl: s.avl,
            unusable: s.unusable,
        }
    }
}

impl From<&kvm_dtable> for TableRecord {
    fn from(table: &kvm_dtable) -> Self {
        Self { base: Hex(table.base), limit: table.limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bytes_come_back_from_json_as_they_went() {
        let page = PageRecord { address: Hex(u64::MAX), bytes: Bytes(vec![0xb0, 0x02]) };
        let json = serde_json::to_string(&page).expect("plain data");
        assert_eq!(json, r#"{"address":"0xffffffffffffffff","bytes":"b002"}"#);
        assert_eq!(serde_json::from_str::<PageRecord>(&json).expect("what we wrote"), page);
    }

    #[test]
    fn damaged_values_are_errors() {
        for json in [r#""3f8""#, r#""0xgg""#, r#""0x11111111111111111""#] {
            assert!(serde_json::from_str::<Hex>(json).is_err(), "{json}");
        }
        for json in [r#""b""#, r#""zz""#, r#""é""#] {
            assert!(serde_json::from_str::<Bytes>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_later_version_may_add_fields() {
        let json = r#"{"type":"end","code":0,"exits":3,"steps":0,"new":true}"#;
        let record = serde_json::from_str::<Record>(json).expect("known fields are there");
        assert_eq!(record, Record::End(EndRecord { code: 0, exits: 3, steps: 0 }));
    }
}
