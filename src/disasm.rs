//! Instructions as text: the listing of a guest, and the one that caused an
//! exit. Chapter 02. The decoder is iced-x86.

use std::collections::BTreeSet;
use std::fmt::Write;

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind, SymbolResolver,
    SymbolResult,
};

use crate::guest::Image;

/// The longest that an x86 instruction can be, in bytes. Intel SDM Vol. 2A,
/// "Intel 64 and IA-32 Architectures Instruction Format".
pub const LONGEST: usize = 15;

/// Decodes the instruction at the start of `bytes`; `None` when they hold no
/// whole valid one.
#[must_use]
pub fn decode(bits: u32, address: u64, bytes: &[u8]) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// The instruction in Intel syntax, addresses named where `image` has a name.
#[must_use]
pub fn text(instruction: &Instruction, image: Option<&Image>) -> String {
    // An indirect one is another code: is_jmp_far_indirect.
    if instruction.is_jmp_far() || instruction.is_call_far() {
        // iced-x86 writes the offset first; the manuals write selector:offset.
        let mnemonic = if instruction.is_jmp_far() { "jmp" } else { "call" };
        let (selector, offset) = (instruction.far_branch_selector(), instruction.far_branch32());
        return format!("{mnemonic} far {selector:#x}:{offset:#x}");
    }
    let resolver = image.map(|image| Box::new(Names(image.clone())) as Box<dyn SymbolResolver>);
    let mut formatter = IntelFormatter::with_options(resolver, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(false);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

struct Names(Image);

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        use Mnemonic::{Add, And, Or, Sub, Test, Xor};
        // What is added or masked is a number, although a name may stand at the same one.
        let of_memory = operand.is_none_or(|operand| instruction.op_kind(operand) == OpKind::Memory);
        if !of_memory && matches!(instruction.mnemonic(), Add | And | Or | Sub | Test | Xor) {
            return None;
        }
        let symbol = self.0.symbols().iter().rev().find(|symbol| symbol.address == address)?;
        Some(SymbolResult::with_str(address, &symbol.name))
    }
}

/// The guest, read as its author wrote it: code with addresses, bytes and
/// names, then data in rows of eight.
///
/// ```text
/// _start:
///                                           # 16-bit code
///     1000  fa                              cli
/// ```
#[must_use]
pub fn listing(image: &Image) -> String {
    let mut out = String::new();
    let mut bits = 0;
    for row in rows(image) {
        for symbol in image.symbols().iter().filter(|symbol| symbol.address == row.address) {
            line(&mut out, &format!("{}:", symbol.name));
        }
        if row.is_code && image.code_bits(row.address) != bits {
            bits = image.code_bits(row.address);
            line(&mut out, &format!("    {:<38}# {bits}-bit code", ""));
        }
        if row.bytes.is_empty() {
            line(&mut out, "    ...");
            continue;
        }
        let meaning = row.instruction.map_or(String::new(), |instruction| text(&instruction, Some(image)));
        let (address, bytes) = (format!("{:x}  ", row.address), format!("{}  ", hex(row.bytes)));
        line(&mut out, &format!("    {address:<6}{bytes:<32}{meaning}"));
    }
    out
}

/// The addresses at which the listing has an instruction.
#[must_use]
pub fn instruction_starts(image: &Image) -> BTreeSet<u64> {
    let code = rows(image).into_iter().filter(|row| row.instruction.is_some());
    code.map(|row| row.address).collect()
}

/// So many zeros in a row are left out of the listing.
const MANY_ZEROS: usize = 32;

/// A line of the listing: an instruction, or up to eight bytes that are none; no
/// bytes where zeros are left out.
struct Row<'a> {
    address: u64,
    bytes: &'a [u8],
    is_code: bool,
    instruction: Option<Instruction>,
}

fn rows(image: &Image) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for segment in image.segments() {
        let mut rest = &segment.bytes[..];
        let mut address = segment.address;
        while !rest.is_empty() {
            // No row reaches over a name or a change of the code's size.
            let to_mark = image.next_mark(address).map_or(u64::MAX, |mark| mark - address);
            let piece = &rest[..rest.len().min(usize::try_from(to_mark).unwrap_or(usize::MAX))];
            let zeros = piece.iter().take_while(|byte| **byte == 0).count();
            if zeros >= MANY_ZEROS {
                let left_out = if zeros == piece.len() { zeros } else { zeros & !7 };
                rows.push(Row { address, bytes: &[], is_code: segment.executable, instruction: None });
                rest = &rest[left_out..];
                address += left_out as u64;
                continue;
            }
            let bits = image.code_bits(address);
            let instruction = segment.executable.then(|| decode(bits, address, piece)).flatten();
            let length = instruction.map_or(piece.len().min(8), |instruction| instruction.len());
            let (bytes, after) = rest.split_at(length);
            rows.push(Row { address, bytes, is_code: segment.executable, instruction });
            rest = after;
            address += length as u64;
        }
    }
    rows
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{}", text.trim_end()).expect("a String takes everything");
}

/// `b0 02 f4`
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_other_instructions_in_other_modes() {
        let bytes = [0x48, 0x89, 0xd8];
        let texts =
            [16, 32, 64].map(|bits| text(&decode(bits, 0, &bytes).expect("valid in every mode"), None));
        assert_eq!(texts, ["dec ax", "dec eax", "mov rax, rbx"]);
    }

    #[test]
    fn a_far_jump_reads_as_the_manual_writes_it() {
        let bytes = [0xea, 0x86, 0x10, 0x00, 0x00, 0x18, 0x00];
        let instruction = decode(32, 0, &bytes).expect("a far jump");
        assert_eq!(text(&instruction, None), "jmp far 0x18:0x1086");
        // `jmp far [bx]` names its target in memory.
        let instruction = decode(16, 0, &[0xff, 0x2f]).expect("an indirect far jump");
        assert_eq!(text(&instruction, None), "jmp far dword ptr [bx]");
    }

    #[test]
    fn many_zeros_are_left_out_of_the_listing() {
        let mut bytes = vec![0xf4];
        bytes.extend([0; 40]);
        bytes.push(0xf4);
        let listing = listing(&Image::flat(0x1000, &bytes));
        let lines: Vec<&str> = listing.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert_eq!(lines[2], "...");
        assert!(lines[3].starts_with("1029"), "{listing}");
    }

    #[test]
    fn a_cut_instruction_is_none() {
        assert!(decode(16, 0, &[0xba, 0xf8]).is_none());
        assert!(decode(16, 0, &[]).is_none());
    }

    #[test]
    fn a_listing_shows_every_byte_once() {
        let image = Image::flat(0x1000, &[0xfa, 0xf4]);
        let listing = listing(&image);
        assert!(listing.contains("1000  fa"), "{listing}");
        assert!(listing.contains("1001  f4                              hlt"), "{listing}");
    }
}
