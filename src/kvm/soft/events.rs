//! Eventfds on the software machine. KVM waits for them in the kernel; here they
//! are looked at before each run, and after an exit that may ring one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmexit_soft as soft;

use crate::kvm::{EventFd, IoEventAddress};

/// A machine's eventfds.
#[derive(Debug, Default)]
pub struct Events(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    /// `KVM_IRQFD`: whose writes raise which line.
    lines: Vec<(EventFd, u32)>,
    /// `KVM_IOEVENTFD`: which writes of the guest ring whom.
    bells: Vec<Bell>,
}

#[derive(Debug)]
struct Bell {
    event: EventFd,
    address: IoEventAddress,
    /// The value that must be written, in so many bytes; anything where there is none.
    value: Option<(u64, usize)>,
}

impl Events {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_line(&self, event: &EventFd, line: u32) -> std::io::Result<()> {
        self.lists().lines.push((event.try_clone()?, line));
        Ok(())
    }

    pub fn add_bell(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        value: Option<(u64, usize)>,
    ) -> std::io::Result<()> {
        self.lists().bells.push(Bell { event: event.try_clone()?, address: *address, value });
        Ok(())
    }

    /// Raises the lines whose eventfds were written to: an edge for each.
    pub fn raise_lines(&self, machine: &soft::Machine) {
        for (event, line) in &self.lists().lines {
            if is_written(event) && event.read().is_ok() {
                let edge =
                    machine.set_irq_line(*line, true).and_then(|()| machine.set_irq_line(*line, false));
                debug_assert!(edge.is_ok(), "an eventfd was tied to a line, so there are controllers");
            }
        }
    }

    /// Whether the exit is a write that rings an eventfd, and no more than that.
    pub fn ring(&self, exit: soft::Exit, data: &[u8]) -> bool {
        let lists = self.lists();
        let rung = lists.bells.iter().find(|bell| bell.is_meant(exit, data));
        rung.is_some_and(|bell| bell.event.write(1).is_ok())
    }
}

impl Bell {
    fn is_meant(&self, exit: soft::Exit, data: &[u8]) -> bool {
        let here = match (exit, &self.address) {
            (soft::Exit::IoOut { port, count: 1, .. }, IoEventAddress::Pio(wanted)) => {
                u64::from(port) == *wanted
            }
            (soft::Exit::MmioWrite { address, .. }, IoEventAddress::Mmio(wanted)) => address == *wanted,
            _ => false,
        };
        let mut bytes = [0; 8];
        let size = data.len().min(8);
        bytes[..size].copy_from_slice(&data[..size]);
        here && self.value.is_none_or(|wanted| wanted == (u64::from_le_bytes(bytes), size))
    }
}

/// Whether a read would return at once.
#[cfg(host_kvm)]
fn is_written(event: &EventFd) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives across the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}

/// Whether a read would return at once.
#[cfg(not(host_kvm))]
fn is_written(event: &EventFd) -> bool {
    event.is_written()
}
