//! Port and address ranges to devices.

use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What a guest asks of the machine by a write to one of its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Switch it off.
    PowerOff,
    /// Reset it.
    Reset,
}

/// Something that answers accesses to its registers; `offset` counts from the
/// start of the device's range.
pub trait Device: Send {
    /// Fills `data` with what the guest reads.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request>;
}

/// A device that another thread reaches too.
impl<T: Device> Device for Arc<Mutex<T>> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.lock().expect("no thread panics while holding a device").read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        self.lock().expect("no thread panics while holding a device").write(offset, data)
    }
}

/// Ranges of ports or of guest-physical addresses, each with its device.
#[derive(Default)]
pub struct Bus(Vec<(Range<u64>, Box<dyn Device>)>);

impl Bus {
    /// Puts a device at a range.
    ///
    /// # Panics
    /// When part of the range is taken: the machine is put together wrong.
    pub fn insert(&mut self, range: Range<u64>, device: impl Device + 'static) {
        let overlaps = |(other, _): &(Range<u64>, _)| range.start < other.end && other.start < range.end;
        assert!(!self.0.iter().any(overlaps), "two devices at {range:#x?}");
        self.0.push((range, Box::new(device)));
    }

    /// Answers a read. Where no device is, all bits are ones, as on a bus that nobody drives.
    pub fn read(&mut self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Passes a write on. Where no device is, it is lost.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Option<Request> {
        let (offset, device) = self.find(address)?;
        device.write(offset, data)
    }

    fn find(&mut self, address: u64) -> Option<(u64, &mut Box<dyn Device>)> {
        let (range, device) = self.0.iter_mut().find(|(range, _)| range.contains(&address))?;
        Some((address - range.start, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the last write, and answers with the offset.
    #[derive(Default)]
    struct Probe(Vec<u8>);

    impl Device for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
            self.0 = [&[offset as u8], data].concat();
            (data == [7]).then_some(Request::Reset)
        }
    }

    #[test]
    fn an_access_reaches_the_device_of_its_range_and_no_other() {
        let first = Arc::new(Mutex::new(Probe::default()));
        let mut bus = Bus::default();
        bus.insert(0x10..0x18, Arc::clone(&first));
        bus.insert(0x18..0x19, Probe::default());
        assert_eq!(bus.write(0x17, &[1, 2]), None);
        assert_eq!(first.lock().expect("one thread").0, [7, 1, 2]);
        assert_eq!(bus.write(0x18, &[7]), Some(Request::Reset));
        let mut data = [0; 2];
        bus.read(0x12, &mut data);
        assert_eq!(data, [2, 2]);
    }

    #[test]
    fn where_no_device_is_reads_are_ones_and_writes_are_lost() {
        let mut bus = Bus::default();
        let mut data = [0; 4];
        bus.read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.write(u64::MAX, &[1]), None);
    }
}
