//! Random sequences of instructions: bytes by chance and from a list of what
//! chance seldom hits, dressed so that most of them get somewhere.

mod control;
mod dress;
mod encoding;
pub mod sse;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic};
use vmexit::kvm::kvm_regs;

use crate::image::{CODE, SLOT, STACK_PAGE, TABLES};
use crate::random::Random;
use crate::setting::{SETTINGS, Setting};
use crate::step::{Sequence, Step, register};

/// The first slots of the code page are for what prepares the registers of SSE.
pub const FIRST_SLOT: u64 = 8;
/// An instruction starts here in its slot: what jumps back a little finds `hlt`.
const OFFSET: u64 = 8;
const SLOTS_A_STEP: u64 = 3;
/// Instructions of a sequence, at most.
const LONGEST: u64 = 30;

/// So many sequences run in one setting before the next has its turn: changing VMs is slow.
const BATCH: u64 = 32;

/// Where step `number` of a sequence is.
pub fn address_of(number: usize) -> u64 {
    CODE + (FIRST_SLOT + number as u64 * SLOTS_A_STEP) * SLOT + OFFSET
}

/// Sequence `number` of a seed, in one of `settings`.
pub fn sequence(seed: u64, number: u64, settings: &[Setting]) -> Sequence {
    let mut random = Random::for_sequence(seed, number);
    let setting = settings[(number / BATCH) as usize % settings.len()];
    let mut regs = kvm_regs::default();
    for number in 0..16 {
        *register(&mut regs, number) = dress::value(&mut random, &setting);
    }
    if !setting.is_64_bit() {
        (8..16).for_each(|number| *register(&mut regs, number) = 0);
    }
    let scratch = random.bytes((TABLES - STACK_PAGE) as usize);
    let length = 1 + random.below(LONGEST);
    let steps = (0..length).map(|number| step(&mut random, &setting, address_of(number as usize))).collect();
    Sequence { setting, regs, scratch, steps }
}

/// Bytes, until they are an instruction that one CPU can repeat after another.
fn step(random: &mut Random, setting: &Setting, at: u64) -> Step {
    loop {
        let mut bytes = encoding::bytes(random, setting);
        let Some(instruction) = decode(&bytes, setting.bits, at) else { continue };
        bytes.truncate(instruction.len());
        if is_comparable(&instruction) && !encoding::has_misplaced_rex(&bytes, setting) {
            return dress::step(random, setting, at, bytes);
        }
    }
}

/// The instruction that the bytes begin with.
pub fn decode(bytes: &[u8], bits: u32, at: u64) -> Option<Instruction> {
    let instruction = Decoder::with_ip(bits, bytes, at, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Whether the outcome depends on nothing but the state that a step starts from.
fn is_comparable(instruction: &Instruction) -> bool {
    why_not(instruction.mnemonic()).is_none() && instruction.cpuid_features().iter().all(is_known)
}

/// Why an instruction that the software machine has is not compared.
pub fn why_not(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic::{
        Getsec, Invd, Monitor, Mwait, Rdpmc, Rdrand, Rdseed, Rdtsc, Rdtscp, Rsm, Vmcall, Vmmcall,
    };
    Some(match mnemonic {
        Rdtsc | Rdtscp => "time differs: soft/src/instructions/system.rs counts instructions",
        Vmcall | Vmmcall => "the hypervisor's business, not the CPU's",
        Invd => "it may lose what was written",
        Getsec | Monitor | Mwait | Rdpmc | Rdrand | Rdseed | Rsm => "the software machine lacks it",
        _ => return None,
    })
}

/// What both the software machine and the lab's CPUs have.
fn is_known(feature: &CpuidFeature) -> bool {
    use CpuidFeature::{
        BMI1, CLFSH, CMOV, CMPXCHG16B, CPUID, CX8, FSGSBASE, FXSR, INTEL186, INTEL286, INTEL386, INTEL486,
        INTEL8086, LZCNT, MOVBE, MSR, MULTIBYTENOP, PAUSE, POPCNT, SEP, SMAP, SSE, SSE2, SYSCALL, X64,
    };
    matches!(
        *feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | CMOV
            | CX8
            | CMPXCHG16B
            | POPCNT
            | MOVBE
            | LZCNT
            | BMI1
            | CPUID
            | MSR
            | FSGSBASE
            | SEP
            | SYSCALL
            | SMAP
            | CLFSH
            | FXSR
            | PAUSE
            | MULTIBYTENOP
            | SSE
            | SSE2
    )
}

/// The settings whose names are given; all of them when none is.
pub fn settings(names: &[String]) -> Result<Vec<Setting>, String> {
    if names.is_empty() {
        return Ok(SETTINGS.to_vec());
    }
    let find = |name: &String| {
        let known = SETTINGS.map(|setting| setting.name).join(", ");
        let found = SETTINGS.into_iter().find(|setting| setting.name == name);
        found.ok_or_else(|| format!("there is no setting {name}; there are {known}"))
    };
    names.iter().map(find).collect()
}
