//! Decoded code: runs of instructions, kept by the guest-physical address that
//! their bytes came from, so that each is decoded once and not each time.
//!
//! A block never leaves its page, and is good for as long as its bytes are:
//! - the guest writes to them: [`CodePages`] knows which parts of a page were
//!   decoded, and a block from before the write is not found again;
//! - the hypervisor writes, between two runs: then the bytes are compared once.

use crate::cpu::{CodeSize, Cpu};
use crate::decode::{Decoded, LONGEST, decode, decoder};
use crate::memory::{OFFSET, PAGE_SIZE, Page};
use crate::op::Op;

/// Blocks that can be found; a power of two.
const BLOCKS: usize = 8192;
/// Instructions in all of them; when they are used up, everything starts over.
const OPS: usize = 1 << 16;
/// Instructions in one block.
const LONGEST_BLOCK: usize = 32;
const BYTES: usize = LONGEST_BLOCK * LONGEST;
/// No code is here: beyond every guest-physical address.
const NOWHERE: u64 = u64::MAX;

/// A block: which of the instructions, and what they were made from.
#[derive(Clone, Copy)]
struct Block {
    key: u64,
    /// Of its page when it was decoded.
    version: u32,
    /// The run in which its bytes were last compared.
    run: u32,
    first_op: u32,
    first_byte: u32,
    ops: u16,
    bytes: u16,
}

const EMPTY: Block = Block { key: NOWHERE, version: 0, run: 0, first_op: 0, first_byte: 0, ops: 0, bytes: 0 };

/// The decoded blocks of one vCPU.
pub struct Cache {
    blocks: Vec<Block>,
    ops: Vec<Op>,
    bytes: Vec<u8>,
    run: u32,
}

/// Where a block's instructions are.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    first: u32,
    ops: u16,
    /// Of all its instructions together.
    pub bytes: u16,
}

/// What was looked for.
pub struct Wanted {
    /// The guest-physical address of its first byte.
    pub physical: u64,
    /// Its page's memory.
    pub page: Page,
    /// How to decode it.
    pub size: CodeSize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            blocks: vec![EMPTY; BLOCKS],
            ops: Vec::with_capacity(OPS),
            bytes: Vec::with_capacity(OPS * 4),
            run: 0,
        }
    }
}

impl Cache {
    /// A new run: the hypervisor may have written any byte since the last one.
    pub fn begin_run(&mut self) {
        self.run = self.run.wrapping_add(1);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.blocks.fill(EMPTY);
        self.ops.clear();
        self.bytes.clear();
    }

    /// The instructions of a block.
    #[inline(always)]
    pub fn ops(&self, range: Range) -> &[Op] {
        &self.ops[range.first as usize..range.first as usize + usize::from(range.ops)]
    }

    /// The block that starts where `wanted` says; `None` when not even its first instruction lies in
    /// one page.
    #[inline(always)]
    pub fn find(&mut self, wanted: &Wanted, cpu: &mut Cpu) -> Option<Range> {
        let key = wanted.physical << 2 | wanted.size as u64;
        let block = &self.blocks[Self::place(key)];
        let version = cpu.code_pages.version(wanted.physical);
        if block.key == key && block.version == version && block.run == self.run {
            return Some(Range { first: block.first_op, ops: block.ops, bytes: block.bytes });
        }
        self.find_again(wanted, key, cpu)
    }

    fn place(key: u64) -> usize {
        (key ^ key >> 13) as usize % BLOCKS
    }

    /// Compares the bytes of a block from before this run, or decodes a new one.
    #[cold]
    fn find_again(&mut self, wanted: &Wanted, key: u64, cpu: &mut Cpu) -> Option<Range> {
        let block = &mut self.blocks[Self::place(key)];
        if block.key == key && block.version == cpu.code_pages.version(wanted.physical) {
            let mut now = [0; BYTES];
            let now = &mut now[..usize::from(block.bytes)];
            wanted.page.copy_to(wanted.physical & OFFSET, now);
            let first = block.first_byte as usize;
            if *now == self.bytes[first..first + now.len()] {
                block.run = self.run;
                return Some(Range { first: block.first_op, ops: block.ops, bytes: block.bytes });
            }
        }
        self.decode(wanted, key, cpu)
    }

    fn decode(&mut self, wanted: &Wanted, key: u64, cpu: &mut Cpu) -> Option<Range> {
        if self.ops.len() + LONGEST_BLOCK > OPS || self.bytes.len() + BYTES > OPS * 4 {
            self.clear();
        }
        let offset = wanted.physical & OFFSET;
        let mut bytes = [0; BYTES];
        let bytes = &mut bytes[..BYTES.min((PAGE_SIZE - offset) as usize)];
        wanted.page.copy_to(offset, bytes);

        let first = self.ops.len();
        let mut decoder = decoder(bytes, wanted.size);
        let mut length = 0;
        while self.ops.len() - first < LONGEST_BLOCK {
            let Decoded::Op(op) = decode(&mut decoder, wanted.size) else { break };
            self.ops.push(op);
            length += usize::from(op.length);
            if ends_block(&op) {
                break;
            }
        }
        let ops = self.ops.len() - first;
        if ops == 0 {
            return None;
        }
        if cpu.code_pages.hold(wanted.physical, length as u64) {
            cpu.tlb.forget_writable(wanted.physical & !OFFSET);
        }
        let block = Block {
            key,
            version: cpu.code_pages.version(wanted.physical),
            run: self.run,
            first_op: first as u32,
            first_byte: self.bytes.len() as u32,
            ops: ops as u16,
            bytes: length as u16,
        };
        self.bytes.extend_from_slice(&bytes[..length]);
        self.blocks[Self::place(key)] = block;
        Some(Range { first: block.first_op, ops: block.ops, bytes: block.bytes })
    }
}

/// After these, RIP may be anywhere. What else ends a block says so when it is executed.
fn ends_block(op: &Op) -> bool {
    op.instruction.flow_control() != iced_x86::FlowControl::Next
}

/// A guest-physical page, by a part of its address.
#[derive(Clone, Copy, Default)]
struct CodePage {
    /// The page's address.
    physical: u64,
    /// A bit for each 64 bytes of it: blocks were decoded from there, and nothing has been written to the
    /// decoded parts since.
    lines: u64,
    version: u32,
}

/// Bytes that share a bit, as a shift.
const LINE: u32 = 6;
const CODE_PAGES: usize = 4096;

/// The bits of `size` bytes from an address on, as far as they lie in its page.
fn lines(physical: u64, size: u64) -> u64 {
    let offset = physical & OFFSET;
    let (first, last) = (offset >> LINE, (offset + size.max(1) - 1).min(OFFSET) >> LINE);
    u64::MAX >> (63 - (last - first)) << first
}

/// Which parts of memory hold code that was decoded, and how often each page of it has changed.
pub struct CodePages(Vec<CodePage>);

impl Default for CodePages {
    fn default() -> Self {
        Self(vec![CodePage::default(); CODE_PAGES])
    }
}

impl CodePages {
    fn index(physical: u64) -> usize {
        (physical >> 12) as usize % CODE_PAGES
    }

    /// Changes when blocks of this page are no longer good.
    #[inline(always)]
    pub fn version(&self, physical: u64) -> u32 {
        self.0[Self::index(physical)].version
    }

    /// Whether a write to this page must be noted.
    #[inline(always)]
    pub fn holds_code(&self, physical: u64) -> bool {
        let page = &self.0[Self::index(physical)];
        page.lines != 0 && page.physical == physical & !OFFSET
    }

    /// These bytes are decoded from now on; whether they are the first of their page.
    pub fn hold(&mut self, physical: u64, size: u64) -> bool {
        let news = !self.holds_code(physical);
        let page = &mut self.0[Self::index(physical)];
        if news {
            // Another page that shares the place loses it.
            *page =
                CodePage { physical: physical & !OFFSET, lines: 0, version: page.version.wrapping_add(1) };
        }
        page.lines |= lines(physical, size);
        news
    }

    /// These bytes were written; whether they were code.
    #[inline(always)]
    pub fn written(&mut self, physical: u64, size: u64) -> bool {
        if !self.holds_code(physical) {
            return false;
        }
        let page = &mut self.0[Self::index(physical)];
        let were_code = page.lines & lines(physical, size) != 0;
        if were_code {
            (page.lines, page.version) = (0, page.version.wrapping_add(1));
        }
        were_code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_matters_where_code_was_decoded_and_nowhere_else() {
        let mut pages = CodePages::default();
        assert!(pages.hold(0x5010, 0x40), "the first of its page");
        assert!(!pages.hold(0x5200, 4));
        let version = pages.version(0x5000);
        assert!(!pages.written(0x5080, 8) && !pages.written(0x6010, 8));
        assert_eq!(pages.version(0x5000), version);
        assert!(pages.written(0x503c, 8));
        assert_ne!(pages.version(0x5000), version);
        assert!(!pages.holds_code(0x5000));
    }

    #[test]
    fn lines_are_64_bytes_and_end_with_the_page() {
        assert_eq!(lines(0x1000, 64), 1);
        assert_eq!(lines(0x103f, 2), 3);
        assert_eq!(lines(0x1fff, 8), 1 << 63);
        assert_eq!(lines(0x1000, 4096), u64::MAX);
    }
}
