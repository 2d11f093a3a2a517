//! What the machine lacks, in words.

use iced_x86::{Formatter, Instruction, IntelFormatter};

use super::Vcpu;
use crate::stop::Missing;

impl Vcpu {
    /// After [`crate::Exit::InternalError`]: what this machine does not implement, as a sentence. `None`
    /// where KVM could not go on either, because no memory is there.
    #[must_use]
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// About the instruction at RIP.
    pub(super) fn sentence(&mut self, missing: Missing) -> Option<String> {
        let what = match missing {
            Missing::Memory => return None,
            Missing::Instruction => String::new(),
            Missing::Tasks => "task switches, which is what asks for one: ".to_owned(),
            Missing::Virtual8086 => "virtual-8086 mode, which is where this leads: ".to_owned(),
            Missing::Accesses => "so many accesses to where no memory is in one instruction: ".to_owned(),
        };
        let text = self.instruction().map_or_else(|| "an instruction".to_owned(), |found| text(&found));
        Some(format!("the software machine does not implement {what}`{text}`"))
    }

    /// The instruction at RIP.
    fn instruction(&mut self) -> Option<Instruction> {
        let op = match self.find_block().ok()? {
            Some(range) => self.cache.ops(range)[0],
            None => self.crossing_instruction().ok()?,
        };
        Some(op.instruction)
    }
}

fn text(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_small_hex_numbers_in_decimal(true);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}
