//! A CPU that is a Rust loop: fetch, decode, execute. It knows seven instructions
//! of 16-bit code, which is what the guests of chapters 01 and 03 are made of.
//! The decoder is iced-x86's; the rest is here.

use std::ops::ControlFlow::{self, Break, Continue};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Why the loop came back, under kvm-ioctls' names.
#[derive(Debug, PartialEq)]
pub enum Exit {
    /// `out`: the port, and the bytes.
    IoOut(u16, Vec<u8>),
    /// `hlt`.
    Hlt,
    /// What this CPU cannot do; KVM's emulator cannot do everything, either.
    InternalError(String),
}

/// The registers of a 16-bit CPU, and the two flags that the guests need.
#[derive(Default)]
pub struct Cpu {
    /// AX, CX, DX, BX, SP, BP, SI, DI: the order in which instructions number them.
    pub registers: [u16; 8],
    pub ip: u16,
    pub zero: bool,
    pub carry: bool,
    /// Instructions since the start.
    pub executed: u64,
}

impl Cpu {
    // ANCHOR: run
    /// Runs the guest until it needs somebody: this is KVM_RUN. A guest that needs
    /// nobody is stopped after `limit` instructions.
    pub fn run(&mut self, memory: &[u8], limit: u64) -> Exit {
        while self.executed < limit {
            if let Break(exit) = self.step(memory) {
                return exit;
            }
        }
        Exit::InternalError(format!("no exit within {limit} instructions"))
    }

    /// Fetches, decodes and executes one instruction.
    fn step(&mut self, memory: &[u8]) -> ControlFlow<Exit> {
        let code = memory.get(usize::from(self.ip)..).unwrap_or_default();
        let mut decoder = Decoder::with_ip(16, code, u64::from(self.ip), DecoderOptions::NONE);
        let instruction = decoder.decode();
        // The next instruction, unless this one jumps.
        self.ip = instruction.next_ip16();
        self.executed += 1;
        match instruction.mnemonic() {
            Mnemonic::Mov => {
                let value = self.read(&instruction, 1)?;
                self.write(&instruction, value)?;
            }
            Mnemonic::Add => {
                let sum = u32::from(self.read(&instruction, 0)?) + u32::from(self.read(&instruction, 1)?);
                self.carry = sum > u32::from(largest(&instruction));
                self.set_result(&instruction, sum as u16)?;
            }
            Mnemonic::Dec => {
                // CF stays as it was: that is how dec differs from a subtraction.
                let less = self.read(&instruction, 0)?.wrapping_sub(1);
                self.set_result(&instruction, less)?;
            }
            Mnemonic::Jne if !self.zero => self.ip = instruction.near_branch16(),
            Mnemonic::Jne => {}
            Mnemonic::Jmp if instruction.is_jmp_short() => self.ip = instruction.near_branch16(),
            Mnemonic::Out => {
                let (port, value) = (self.read(&instruction, 0)?, self.read(&instruction, 1)?);
                let size = instruction.op1_register().size();
                return Break(Exit::IoOut(port, value.to_le_bytes()[..size].to_vec()));
            }
            Mnemonic::Hlt => return Break(Exit::Hlt),
            _ => return Break(unknown(&instruction)),
        }
        Continue(())
    }
    // ANCHOR_END: run

    // ANCHOR: operands
    /// The value of an operand: a register, or a number in the instruction itself.
    fn read(&self, instruction: &Instruction, operand: u32) -> ControlFlow<Exit, u16> {
        match instruction.op_kind(operand) {
            OpKind::Register => match place(instruction.op_register(operand)) {
                Some((number, shift, mask)) => Continue(self.registers[number] >> shift & mask),
                None => Break(unknown(instruction)),
            },
            OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate8to16 => {
                Continue(instruction.immediate(operand) as u16)
            }
            _ => Break(unknown(instruction)),
        }
    }

    /// Puts a value into the first operand, a register.
    fn write(&mut self, instruction: &Instruction, value: u16) -> ControlFlow<Exit> {
        match place(instruction.op0_register()) {
            Some((number, shift, mask)) => {
                let others = self.registers[number] & !(mask << shift);
                self.registers[number] = others | (value & mask) << shift;
                Continue(())
            }
            None => Break(unknown(instruction)),
        }
    }

    /// Writes what an arithmetic instruction computed, and ZF from it.
    fn set_result(&mut self, instruction: &Instruction, value: u16) -> ControlFlow<Exit> {
        self.zero = value & largest(instruction) == 0;
        self.write(instruction, value)
    }
    // ANCHOR_END: operands
}

/// Where a register lies: its 16-bit register's number, how far up in it, and its bits.
fn place(register: Register) -> Option<(usize, u32, u16)> {
    let number = register.number();
    match register {
        register if register.is_gpr16() => Some((number, 0, 0xffff)),
        Register::AL | Register::CL | Register::DL | Register::BL => Some((number, 0, 0xff)),
        Register::AH | Register::CH | Register::DH | Register::BH => Some((number - 4, 8, 0xff)),
        _ => None,
    }
}

/// The largest value that fits the first operand.
fn largest(instruction: &Instruction) -> u16 {
    if instruction.op0_register().size() == 1 { 0xff } else { 0xffff }
}

fn unknown(instruction: &Instruction) -> Exit {
    Exit::InternalError(format!("this CPU does not know `{instruction}`"))
}
