//! Descriptors: finding them in the GDT and the LDT, and loading data and stack segments from them.
//! Intel SDM Vol. 3A, chapters "Protected-Mode Memory Management" and "Protection".

use crate::cpu::{Cpu, Shadow, seg};
use crate::registers::{Segment, kind};
use crate::stop::{Done, Fault, Stop};

/// A descriptor's eight bytes.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// The four type bits.
    pub fn kind(self) -> u8 {
        (self.0 >> 40 & 0xf) as u8
    }

    /// Code or data, no system segment or gate.
    pub fn is_segment(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    /// Code.
    pub fn is_code(self) -> bool {
        self.is_segment() && self.kind() & kind::CODE != 0
    }

    /// Code that lower rings may run in without becoming a higher one.
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & kind::CONFORMING != 0
    }

    /// Data that can be written: what a stack must be.
    pub fn is_writable_data(self) -> bool {
        self.is_segment() && self.kind() & (kind::CODE | kind::WRITABLE) == kind::WRITABLE
    }

    /// The ring that it belongs to.
    pub fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    /// P.
    pub fn is_present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    /// L: 64-bit code.
    pub fn is_long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    /// D/B.
    pub fn is_big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    /// The segment register after `selector` was loaded with this descriptor.
    pub fn segment(self, selector: u16) -> Segment {
        let bit = |number: u32| (self.0 >> number & 1) as u8;
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        Segment {
            base: self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000,
            limit: if bit(55) != 0 { limit << 12 | 0xfff } else { limit },
            selector,
            type_: self.kind(),
            present: bit(47),
            dpl: self.dpl(),
            db: bit(54),
            s: bit(44),
            l: bit(53),
            g: bit(55),
            avl: bit(52),
            unusable: 0,
        }
    }
}

/// Which fault a bad selector is: #GP mostly, #TS where it came from a TSS.
pub type SelectorFault = fn(u16) -> Fault;

/// A selector as an error code: without its RPL.
#[inline]
pub fn code_of(selector: u16) -> u16 {
    selector & !3
}

/// The ring that a selector asks for.
pub fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// Whether a selector is one of the four that mean entry 0 of the GDT.
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Cpu {
    /// The linear address of a selector's descriptor of `size` bytes.
    ///
    /// # Errors
    /// When it lies outside its table.
    pub fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        const LOCAL: u16 = 1 << 2;
        let offset = u64::from(selector & !7);
        let (base, limit) = if selector & LOCAL == 0 {
            (self.gdt.base, u64::from(self.gdt.limit))
        } else if self.ldt.unusable != 0 || self.ldt.present == 0 {
            return None;
        } else {
            (self.ldt.base, u64::from(self.ldt.limit))
        };
        (offset + size - 1 <= limit).then(|| self.wrap_linear(base.wrapping_add(offset)))
    }

    /// A linear address as wide as the CPU's mode makes it.
    pub fn wrap_linear(&self, linear: u64) -> u64 {
        if self.long_mode() { linear } else { linear & 0xffff_ffff }
    }

    /// Reads a selector's descriptor. The CPU reads its tables as ring 0.
    ///
    /// # Errors
    /// `fault` when it lies outside its table.
    pub fn descriptor(&mut self, selector: u16, fault: SelectorFault) -> Result<Descriptor, Stop> {
        let Some(address) = self.descriptor_address(selector, 8) else {
            return Err(fault(code_of(selector)).into());
        };
        Ok(Descriptor(self.read(address, 8, false)?))
    }

    /// Sets the accessed bit of a descriptor that is loaded into a segment register, there and here.
    pub fn mark_descriptor(&mut self, selector: u16, descriptor: Descriptor) -> Result<Descriptor, Stop> {
        if descriptor.kind() & kind::ACCESSED != 0 {
            return Ok(descriptor);
        }
        const TYPE_BYTE: u64 = 5;
        let marked = Descriptor(descriptor.0 | u64::from(kind::ACCESSED) << 40);
        if let Some(address) = self.descriptor_address(selector, 8) {
            self.write(address.wrapping_add(TYPE_BYTE), 1, marked.0 >> (8 * TYPE_BYTE), false)?;
        }
        Ok(marked)
    }

    /// Loads ES, SS, DS, FS or GS: MOV, POP, LDS and the like. Intel SDM Vol. 2B, "MOV—Move".
    ///
    /// # Errors
    /// #UD for CS; #GP, #NP or #SS for a selector that the register cannot take.
    pub fn load_segment_register(&mut self, register: usize, selector: u16) -> Done {
        if register == seg::CS {
            return Err(Fault::INVALID_OPCODE.into());
        }
        if self.protected() {
            self.segments[register] = self.protected_segment(register, selector)?;
        } else {
            let segment = &mut self.segments[register];
            (segment.selector, segment.base) = (selector, u64::from(selector) << 4);
        }
        if register == seg::SS {
            self.shadow = Shadow::MovSs;
            self.leave_block = true;
        }
        Ok(())
    }

    fn protected_segment(&mut self, register: usize, selector: u16) -> Result<Segment, Stop> {
        if register == seg::SS {
            return self.stack_segment(selector, self.cpl, Fault::general_protection);
        }
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let refused = Fault::general_protection(code_of(selector));
        let descriptor = self.descriptor(selector, Fault::general_protection)?;
        let readable = !descriptor.is_code() || descriptor.kind() & kind::READABLE != 0;
        if !descriptor.is_segment() || !readable {
            return Err(refused.into());
        }
        let privileged = descriptor.dpl() < self.cpl.max(rpl(selector));
        if privileged && !descriptor.is_conforming() {
            return Err(refused.into());
        }
        if !descriptor.is_present() {
            return Err(Fault::not_present(code_of(selector)).into());
        }
        Ok(self.mark_descriptor(selector, descriptor)?.segment(selector))
    }

    /// What SS holds with this selector in a ring; `fault` is #GP, or #TS where the selector came from a
    /// TSS.
    ///
    /// # Errors
    /// `fault` for what cannot be a stack, #SS for one that is not present.
    pub fn stack_segment(&mut self, selector: u16, ring: u8, fault: SelectorFault) -> Result<Segment, Stop> {
        if is_null(selector) {
            // 64-bit code needs no stack segment, but in ring 3.
            if self.in_64_bit() && ring != 3 && rpl(selector) == ring {
                return Ok(Segment { dpl: ring, ..null_segment(selector) });
            }
            return Err(fault(if fault(0).vector == crate::stop::vector::INVALID_TSS {
                code_of(selector)
            } else {
                0
            })
            .into());
        }
        let descriptor = self.descriptor(selector, fault)?;
        if rpl(selector) != ring || descriptor.dpl() != ring || !descriptor.is_writable_data() {
            return Err(fault(code_of(selector)).into());
        }
        if !descriptor.is_present() {
            return Err(Fault::stack(code_of(selector)).into());
        }
        Ok(self.mark_descriptor(selector, descriptor)?.segment(selector))
    }

    /// Runs `steps`, which may fail in their middle, so that the registers change all together or not
    /// at all.
    pub fn all_or_nothing(&mut self, steps: impl FnOnce(&mut Self) -> Done) -> Done {
        let before = (self.segments, self.gpr, self.rflags, self.cpl, self.code_size, self.next);
        let done = steps(self);
        if done.is_err() {
            (self.segments, self.gpr, self.rflags, self.cpl, self.code_size, self.next) = before;
        }
        done
    }
}

/// A segment register that holds a null selector.
pub fn null_segment(selector: u16) -> Segment {
    Segment { selector, unusable: 1, ..Segment::default() }
}
