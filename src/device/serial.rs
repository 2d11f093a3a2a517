//! A serial port: the 16550 of a PC, by rust-vmm's vm-superio.
//!
//! National Semiconductor PC16550D datasheet.

use std::collections::VecDeque;
use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial as Uart};

use super::{Device, Request};

/// The first port of COM1, and how many it has.
pub const COM1: u16 = 0x3f8;
pub const SIZE: u16 = 8;
/// The interrupt that a PC's COM1 is wired to.
pub const COM1_IRQ: u32 = 4;

/// What raises the port's interrupt.
pub type Interrupt = Box<dyn Fn() -> io::Result<()> + Send>;

struct Line(Interrupt);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        (self.0)()
    }
}

/// A port, with what is typed at its other end.
pub struct Serial {
    uart: Uart<Line, NoEvents, Box<dyn Write + Send>>,
    /// Typed, and not in the UART's FIFO yet.
    waiting: VecDeque<u8>,
    /// The first failure to write, or to interrupt.
    error: Option<io::Error>,
}

impl Serial {
    /// A port that writes to `output` what the guest sends, and calls `interrupt`
    /// when the guest is to look at it.
    #[must_use]
    pub fn new(interrupt: Interrupt, output: impl Write + Send + 'static) -> Self {
        let uart = Uart::new(Line(interrupt), Box::new(output) as Box<dyn Write + Send>);
        Self { uart, waiting: VecDeque::new(), error: None }
    }

    /// Sends bytes to the guest: as many as fit into the FIFO at once, the others
    /// when the guest has read those.
    pub fn send(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        self.fill();
    }

    /// How many bytes wait for room in the FIFO.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What went wrong first, if anything did.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    fn fill(&mut self) {
        let room = self.uart.fifo_capacity().min(self.waiting.len());
        if room > 0 {
            let bytes: Vec<u8> = self.waiting.drain(..room).collect();
            let sent = self.uart.enqueue_raw_bytes(&bytes).map(drop);
            self.note(sent);
        }
    }

    fn note(&mut self, result: Result<(), Error<io::Error>>) {
        let error = match result {
            Err(Error::Trigger(error) | Error::IOError(error)) => error,
            Err(Error::FullFifo) | Ok(()) => return,
        };
        self.error.get_or_insert(error);
    }
}

/// Its registers are a byte wide, and so an access of more bytes is that many to
/// the same register: KVM may bring a whole `rep insb` as one exit.
impl Device for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.uart.read(offset as u8);
            self.fill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        for byte in data {
            let written = self.uart.write(offset as u8, *byte);
            self.note(written);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const INTERRUPT_IDENTIFICATION: u64 = 2;
    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (Serial, Shared, Arc<AtomicUsize>) {
        let (output, interrupts) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&interrupts);
        let interrupt = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        (Serial::new(interrupt, output.clone()), output, interrupts)
    }

    fn read(port: &mut Serial, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn a_polling_driver_sends_when_the_transmitter_is_empty_and_reads_when_data_is_ready() {
        let (mut port, output, interrupts) = port();
        assert_eq!(read(&mut port, LINE_STATUS), 0x60, "transmitter empty, nothing to read");
        port.write(DATA, b"hi");
        assert_eq!(*output.0.lock().expect("one thread"), b"hi");
        port.send(b"x");
        assert_eq!(read(&mut port, LINE_STATUS), 0x61);
        assert_eq!(read(&mut port, DATA), b'x');
        assert_eq!(read(&mut port, LINE_STATUS), 0x60);
        assert_eq!(interrupts.load(Ordering::Relaxed), 0, "no interrupt was enabled");
    }

    #[test]
    fn an_interrupt_driver_is_told_of_data_and_reads_more_than_the_fifo_holds() {
        let (mut port, _, interrupts) = port();
        port.write(INTERRUPT_ENABLE, &[1]);
        let typed: Vec<u8> = (0..200).collect();
        port.send(&typed);
        assert_eq!(interrupts.load(Ordering::Relaxed), 1);
        assert_eq!(read(&mut port, INTERRUPT_IDENTIFICATION) & 0x0f, 4, "received data available");
        let mut got = Vec::new();
        while read(&mut port, LINE_STATUS) & 1 != 0 {
            got.push(read(&mut port, DATA));
        }
        assert_eq!(got, typed);
    }

    #[test]
    fn a_full_disk_is_remembered_and_does_not_stop_the_guest() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut port = Serial::new(Box::new(|| Ok(())), Full);
        port.write(DATA, b"ab");
        let error = port.take_error().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::StorageFull));
        assert!(port.take_error().is_none());
    }
}
