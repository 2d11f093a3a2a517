//! Decoded code: runs of instructions, kept by the guest-physical address that
//! their bytes came from, so that each is decoded once and not each time.
//!
//! A block never leaves its page, and is good for as long as its bytes are:
//! - the guest writes to the page: [`CodePages`] counts that, and a block from
//!   before is not found again;
//! - the hypervisor writes, between two runs: then the bytes are compared once.

use crate::cpu::CodeSize;
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
    pub fn find(&mut self, wanted: &Wanted, pages: &CodePages) -> Option<Range> {
        let key = wanted.physical << 2 | wanted.size as u64;
        let block = &self.blocks[Self::place(key)];
        if block.key == key && block.version == pages.version(wanted.physical) && block.run == self.run {
            return Some(Range { first: block.first_op, ops: block.ops, bytes: block.bytes });
        }
        self.find_again(wanted, key, pages)
    }

    fn place(key: u64) -> usize {
        (key ^ key >> 13) as usize % BLOCKS
    }

    /// Compares the bytes of a block from before this run, or decodes a new one.
    #[cold]
    fn find_again(&mut self, wanted: &Wanted, key: u64, pages: &CodePages) -> Option<Range> {
        let block = &mut self.blocks[Self::place(key)];
        if block.key == key && block.version == pages.version(wanted.physical) {
            let mut now = [0; BYTES];
            let now = &mut now[..usize::from(block.bytes)];
            wanted.page.copy_to(wanted.physical & OFFSET, now);
            let first = block.first_byte as usize;
            if *now == self.bytes[first..first + now.len()] {
                block.run = self.run;
                return Some(Range { first: block.first_op, ops: block.ops, bytes: block.bytes });
            }
        }
        self.decode(wanted, key, pages)
    }

    fn decode(&mut self, wanted: &Wanted, key: u64, pages: &CodePages) -> Option<Range> {
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
        let block = Block {
            key,
            version: pages.version(wanted.physical),
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
    /// Blocks were decoded from it, and nothing was written to it since.
    live: bool,
    version: u32,
}

const CODE_PAGES: usize = 4096;

/// Which pages hold code that was decoded, and how often each has changed.
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
        page.live && page.physical == physical & !OFFSET
    }

    /// Code is decoded from this page from now on; whether that is news.
    #[inline(always)]
    pub fn hold(&mut self, physical: u64) -> bool {
        if self.holds_code(physical) {
            return false;
        }
        let page = &mut self.0[Self::index(physical)];
        // Another page that shares the place loses it.
        *page = CodePage { physical: physical & !OFFSET, live: true, version: page.version.wrapping_add(1) };
        true
    }

    /// This page was written; whether it held code.
    #[inline(always)]
    pub fn written(&mut self, physical: u64) -> bool {
        let held = self.holds_code(physical);
        if held {
            let page = &mut self.0[Self::index(physical)];
            (page.live, page.version) = (false, page.version.wrapping_add(1));
        }
        held
    }
}
