//! A vCPU's place on a machine that has interrupt controllers: their registers are
//! served here, their interrupts delivered, and `hlt` waits here for the next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Vcpu;
use crate::chipset::{Chipset, Waiting};
use crate::errno::Errno;
use crate::exit::Exit;
use crate::interrupt::{Event, Source};

/// The interrupt controllers, as all of a machine's CPUs and devices share them.
#[derive(Debug, Default)]
pub struct Shared {
    chipset: Mutex<Chipset>,
    /// Counts the changes that came from outside a CPU.
    changes: AtomicU64,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Chipset> {
        self.chipset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises or lowers a line, from any thread.
    pub(crate) fn set_line(&self, line: u32, high: bool) {
        self.lock().set_line(line, high);
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// What a vCPU knows of the controllers since it last looked.
pub struct Board {
    shared: Arc<Shared>,
    /// The CPU's number, which is its APIC ID.
    number: usize,
    /// When a timer has something to do; 0 to look at once.
    next_event: u64,
    changes: u64,
    cr8: u64,
    waiting: Option<Waiting>,
    halted: bool,
}

impl Board {
    pub(crate) fn new(shared: Arc<Shared>, number: usize) -> Self {
        shared.lock().add_cpu(number);
        Self { shared, number, next_event: 0, changes: 0, cr8: 0, waiting: None, halted: false }
    }
}

/// How a `hlt` goes on.
pub(super) enum Wait {
    /// Something has come that wakes the CPU.
    Over,
    /// Time has been let go by, and nothing has come that the guest takes.
    Goes,
    /// No timer runs: only a line from outside can wake the CPU.
    Endless,
}

impl Vcpu {
    /// The local APIC's registers, the one at offset `n * 16` in place `n`: `KVM_GET_LAPIC`.
    ///
    /// # Errors
    /// `EINVAL` without interrupt controllers.
    pub fn lapic(&self) -> Result<[u32; 64], Errno> {
        let board = self.board.as_ref().ok_or(Errno::EINVAL)?;
        let mut chipset = board.shared.lock();
        let local = chipset.local(board.number).ok_or(Errno::EINVAL)?;
        Ok(local.registers(self.cpu.nanoseconds()))
    }

    /// `KVM_SET_LAPIC`.
    ///
    /// # Errors
    /// `EINVAL` without interrupt controllers.
    pub fn set_lapic(&mut self, registers: &[u32; 64]) -> Result<(), Errno> {
        let now = self.cpu.nanoseconds();
        let board = self.board.as_mut().ok_or(Errno::EINVAL)?;
        board.next_event = 0;
        let mut chipset = board.shared.lock();
        chipset.local(board.number).ok_or(Errno::EINVAL)?.set_registers(registers, now);
        Ok(())
    }

    /// What waits at the interrupt controllers.
    pub(super) fn waits_on_board(&self) -> Option<Waiting> {
        self.board.as_ref()?.waiting
    }

    /// Looks at the controllers if something may have changed there.
    #[inline]
    pub(super) fn look_at_board(&mut self) {
        let Some(board) = &self.board else { return };
        let changed = board.shared.changes.load(Ordering::Acquire) != board.changes;
        if changed || self.cpu.nanoseconds() >= board.next_event || self.cpu.cr8 != board.cr8 {
            self.look_closely();
        }
    }

    #[cold]
    fn look_closely(&mut self) {
        let now = self.cpu.nanoseconds();
        let Some(board) = &mut self.board else { return };
        board.changes = board.shared.changes.load(Ordering::Acquire);
        let mut chipset = board.shared.lock();
        if self.cpu.cr8 == board.cr8 {
            self.cpu.cr8 = chipset.cr8(board.number);
        } else {
            chipset.set_cr8(board.number, self.cpu.cr8);
        }
        board.cr8 = self.cpu.cr8;
        chipset.advance(board.number, now);
        board.next_event = chipset.next_event(board.number).unwrap_or(u64::MAX);
        board.waiting = chipset.waiting(board.number);
    }

    /// How many instructions there are until a timer's event.
    pub(super) fn instructions_to_event(&self) -> u64 {
        let next = self.board.as_ref().map_or(u64::MAX, |board| board.next_event);
        next.saturating_sub(self.cpu.nanoseconds())
    }

    /// Delivers what waits there, if the guest can take it now. The inner `None` is an event that was
    /// delivered.
    pub(super) fn take_from_board(&mut self) -> Option<Option<Exit>> {
        let ready = self.ready_for_interrupt_injection();
        let board = self.board.as_mut()?;
        match board.waiting? {
            Waiting::NonMaskable => {
                board.shared.lock().acknowledge_nmi(board.number);
                board.next_event = 0;
                self.nmi();
                None
            }
            Waiting::Interrupt if ready => {
                let vector = board.shared.lock().acknowledge(board.number);
                (board.waiting, board.next_event) = (None, 0);
                self.cpu.next = self.cpu.rip;
                let event = Event { vector: vector?, code: None, source: Source::External };
                Some(self.deliver(event))
            }
            Waiting::Interrupt => None,
        }
    }

    /// Whether the CPU waits in a `hlt`.
    pub(super) fn is_halted(&self) -> bool {
        self.board.as_ref().is_some_and(|board| board.halted)
    }

    /// Waits in a `hlt`: the time until the next timer's event goes by at once.
    pub(super) fn wait(&mut self) -> Wait {
        self.look_at_board();
        let wakes = self.events.nmi_pending > 0
            || match self.waits_on_board() {
                Some(Waiting::NonMaskable) => true,
                Some(Waiting::Interrupt) => self.if_flag(),
                None => false,
            };
        let Some(board) = &mut self.board else { return Wait::Over };
        if wakes {
            board.halted = false;
            return Wait::Over;
        }
        if board.next_event == u64::MAX {
            return Wait::Endless;
        }
        self.cpu.idle += board.next_event.saturating_sub(self.cpu.nanoseconds());
        Wait::Goes
    }

    /// Whether the exit is the controllers' own affair; then it is answered.
    pub(super) fn serve(&mut self, exit: Exit) -> bool {
        if self.board.is_none() {
            return false;
        }
        let served = match exit {
            Exit::Hlt => {
                self.board.iter_mut().for_each(|board| board.halted = true);
                return true;
            }
            Exit::IoOut { port, size, count } => self.serve_ports(port, size, count, true),
            Exit::IoIn { port, size, count } => self.serve_ports(port, size, count, false),
            Exit::MmioRead { address, size } => self.serve_read(address, size),
            Exit::MmioWrite { address, size } => self.serve_write(address, size),
            _ => None,
        };
        if let (Some(()), Some(board)) = (served, &mut self.board) {
            board.next_event = 0;
        }
        served.is_some()
    }

    /// An access of several bytes is one to as many ports; where the first is no controller's, none is.
    fn serve_ports(&mut self, port: u16, size: u8, count: u32, writes: bool) -> Option<()> {
        let now = self.cpu.nanoseconds();
        let mut chipset = self.board.as_ref()?.shared.lock();
        let size = usize::from(size);
        for (number, byte) in self.cpu.data[..size * count as usize].iter_mut().enumerate() {
            let port = port.wrapping_add((number % size) as u16);
            let served = if writes {
                chipset.write_port(port, *byte, now)
            } else {
                chipset.read_port(port, now).map(|value| *byte = value)
            };
            match served {
                None if number == 0 => return None,
                None if !writes => *byte = 0xff,
                _ => {}
            }
        }
        Some(())
    }

    /// The controllers' registers have four bytes at a multiple of sixteen; a read may be of a part.
    fn serve_read(&mut self, address: u64, size: u8) -> Option<()> {
        let (now, apic_base) = (self.cpu.nanoseconds(), self.cpu.msrs.apic_base);
        let board = self.board.as_ref()?;
        let value = board.shared.lock().read_memory(board.number, apic_base, address & !3, now)?;
        let bytes = (u64::from(value) >> (8 * (address & 3))).to_le_bytes();
        let size = usize::from(size);
        self.cpu.data[..size].copy_from_slice(&bytes[..size]);
        Some(())
    }

    /// A write of anything but four aligned bytes is ignored, as KVM's local APIC does.
    fn serve_write(&mut self, address: u64, size: u8) -> Option<()> {
        let (now, apic_base) = (self.cpu.nanoseconds(), self.cpu.msrs.apic_base);
        let board = self.board.as_ref()?;
        let mut chipset = board.shared.lock();
        if size != 4 || address & 3 != 0 {
            return chipset.read_memory(board.number, apic_base, address & !3, now).map(|_| ());
        }
        let value =
            u32::from_le_bytes([self.cpu.data[0], self.cpu.data[1], self.cpu.data[2], self.cpu.data[3]]);
        chipset.write_memory(board.number, apic_base, address, value, now)
    }
}
