//! What the hypervisor writes into a guest's memory after the guest first ran. The
//! guest finds it there as it finds the answer to an `in`, so a run can be replayed
//! only if it was written down.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A log of writes; it is kept from [`Self::begin`] on.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    begun: AtomicBool,
    list: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Writes {
    /// From now on writes are noted; what was written before is in the memory that the guest starts with.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// From now on they are not.
    pub fn end(&self) {
        self.begun.store(false, Ordering::Relaxed);
        self.take();
    }

    pub fn note(&self, address: u64, bytes: &[u8]) {
        if self.begun.load(Ordering::Relaxed) {
            self.list().push((address, bytes.to_vec()));
        }
    }

    /// Each write since the last call, with its guest-physical address, in order.
    pub fn take(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut *self.list())
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Vec<u8>)>> {
        self.list.lock().expect("nobody panics while holding the log")
    }
}

#[cfg(test)]
mod tests {
    use crate::guest::Memory;

    #[test]
    fn only_what_is_written_while_the_log_is_kept_is_in_it() {
        let memory = Memory::new(4096).expect("a page");
        memory.write(0, b"before").expect("inside");
        let writes = memory.writes();
        writes.begin();
        memory.write(8, b"since").expect("inside");
        assert!(memory.write(4095, b"outside").is_err());
        assert_eq!(writes.take(), [(8, b"since".to_vec())]);
        writes.end();
        memory.write(8, b"after").expect("inside");
        assert_eq!(writes.take(), []);
    }
}
