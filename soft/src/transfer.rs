//! Going to other code segments: what far jumps, calls, returns and interrupts
//! have in common. Intel SDM Vol. 3A, "Privilege Level Checking When Transferring
//! Program Control Between Code Segments".

use crate::cpu::{Cpu, gpr, seg};
use crate::descriptor::{Descriptor, SelectorFault, code_of, is_null, null_segment, rpl};
use crate::registers::{Segment, kind};
use crate::segment::is_canonical;
use crate::stop::{Done, Fault, Stop};

impl Cpu {
    /// Reads the descriptor of a code segment; `fault` for what is none.
    pub fn code_descriptor(&mut self, selector: u16, fault: SelectorFault) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(fault(0).into());
        }
        let descriptor = self.descriptor(selector, fault)?;
        if !descriptor.is_code() || self.long_mode() && descriptor.is_long() && descriptor.is_big() {
            return Err(fault(code_of(selector)).into());
        }
        Ok(descriptor)
    }

    /// Loads CS with a code segment for a ring, and goes to an offset in it.
    ///
    /// # Errors
    /// #NP(selector) when it is not present, #GP(0) when the offset is outside it.
    pub fn enter_code(&mut self, selector: u16, descriptor: Descriptor, ring: u8, offset: u64) -> Done {
        self.check_entry(selector, descriptor, offset)?;
        let marked = self.mark_descriptor(selector, descriptor)?;
        self.segments[seg::CS] = marked.segment(selector & !3 | u16::from(ring));
        self.cpl = ring;
        self.update_mode();
        self.next = offset;
        Ok(())
    }

    /// Whether [`enter_code`](Self::enter_code) could go there. A call asks before it pushes.
    ///
    /// # Errors
    /// As `enter_code`.
    pub fn check_entry(&self, selector: u16, descriptor: Descriptor, offset: u64) -> Done {
        if !descriptor.is_present() {
            return Err(Fault::not_present(code_of(selector)).into());
        }
        let long = self.long_mode() && descriptor.is_long();
        let inside =
            if long { is_canonical(offset) } else { offset <= u64::from(descriptor.segment(0).limit) };
        if inside { Ok(()) } else { Err(Fault::general_protection(0).into()) }
    }

    /// CS:offset in real mode.
    pub fn enter_real_code(&mut self, selector: u16, offset: u64) -> Done {
        let cs = &mut self.segments[seg::CS];
        if offset > u64::from(cs.limit) {
            return Err(Fault::general_protection(0).into());
        }
        (cs.selector, cs.base) = (selector, u64::from(selector) << 4);
        self.next = offset;
        self.leave_block = true;
        Ok(())
    }

    /// The stack that the TSS holds for a ring: SS and the stack pointer. Intel SDM Vol. 3A, "Stack
    /// Switching"; in long mode "Stack Switching in IA-32e Mode": there SS becomes null.
    ///
    /// # Errors
    /// #TS where the TSS is too small or holds no stack for the ring.
    pub fn stack_for_ring(&mut self, ring: u8) -> Result<(Segment, u64), Stop> {
        let number = u64::from(ring);
        if self.long_mode() {
            let pointer = self.tss_field(4 + 8 * number, 8)?;
            let segment = Segment { dpl: ring, ..null_segment(u16::from(ring)) };
            return Ok((segment, pointer));
        }
        let (pointer, selector) = if self.tr.type_ & !2 == kind::TSS_16 {
            (self.tss_field(2 + 4 * number, 2)?, self.tss_field(4 + 4 * number, 2)?)
        } else {
            (self.tss_field(4 + 8 * number, 4)?, self.tss_field(8 + 8 * number, 2)?)
        };
        let segment = self.stack_segment(selector as u16, ring, Fault::invalid_tss)?;
        Ok((segment, pointer))
    }

    /// A field of the task state segment.
    ///
    /// # Errors
    /// #TS(the task register's selector) when it lies outside.
    pub fn tss_field(&mut self, offset: u64, size: usize) -> Result<u64, Stop> {
        if self.tr.unusable != 0 || offset + size as u64 - 1 > u64::from(self.tr.limit) {
            return Err(Fault::invalid_tss(code_of(self.tr.selector)).into());
        }
        let linear = self.wrap_linear(self.tr.base.wrapping_add(offset));
        self.read(linear, size, false)
    }

    /// Switches to a ring's stack.
    pub fn use_stack(&mut self, ring: u8, segment: Segment, pointer: u64) {
        self.segments[seg::SS] = segment;
        self.cpl = ring;
        self.gpr[gpr::RSP] = pointer;
    }

    /// After a return to a lower ring: segment registers that it may not use become null. Intel SDM
    /// Vol. 2B, "RET—Return From Procedure".
    pub fn clear_segments_of_inner_rings(&mut self) {
        for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.segments[register];
            let conforming = segment.type_ & (kind::CODE | kind::CONFORMING) == kind::CODE | kind::CONFORMING;
            if segment.unusable == 0 && segment.dpl < self.cpl && !conforming {
                *segment = null_segment(0);
            }
        }
    }

    /// Returns to CS:offset, popped from the stack, with the ring in its RPL; for RETF and IRET.
    /// `outer` is the stack that was popped with it, for another ring or (IRET in 64-bit code) always.
    pub fn return_to(&mut self, selector: u16, offset: u64, outer: Option<(u16, u64)>) -> Done {
        let ring = rpl(selector);
        let refused = Fault::general_protection(code_of(selector));
        if is_null(selector) {
            return Err(Fault::general_protection(0).into());
        }
        if ring < self.cpl {
            return Err(refused.into());
        }
        let descriptor = self.code_descriptor(selector, Fault::general_protection)?;
        let allowed =
            if descriptor.is_conforming() { descriptor.dpl() <= ring } else { descriptor.dpl() == ring };
        if !allowed {
            return Err(refused.into());
        }
        let lower = ring > self.cpl;
        self.enter_code(selector, descriptor, ring, offset)?;
        if let Some((stack, pointer)) = outer {
            let segment = self.stack_segment(stack, ring, Fault::general_protection)?;
            self.segments[seg::SS] = segment;
            self.set_stack_pointer(pointer);
        }
        if lower {
            self.clear_segments_of_inner_rings();
        }
        Ok(())
    }
}
