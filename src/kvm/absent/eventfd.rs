//! Linux's eventfd, for hosts that have none: a counter that threads of this
//! process share.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A counter: one side adds to it, the other waits until it is not 0, and takes it.
#[derive(Debug, Default)]
pub struct EventFd(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    value: Mutex<u64>,
    changed: Condvar,
}

impl EventFd {
    /// A counter at 0. The flags are Linux's, and mean nothing here.
    ///
    /// # Errors
    /// None; Linux's has some.
    pub fn new(_: i32) -> io::Result<Self> {
        Ok(Self::default())
    }

    fn value(&self) -> MutexGuard<'_, u64> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the counter.
    ///
    /// # Errors
    /// `WouldBlock` where it would overflow.
    pub fn write(&self, add: u64) -> io::Result<()> {
        let mut value = self.value();
        // As on Linux, it may hold everything but 2^64 - 1.
        let sum = value.checked_add(add).filter(|sum| *sum < u64::MAX);
        *value = sum.ok_or(io::ErrorKind::WouldBlock)?;
        self.0.changed.notify_all();
        Ok(())
    }

    /// Waits until the counter is not 0, takes its value, and leaves 0.
    ///
    /// # Errors
    /// None; Linux's has some.
    pub fn read(&self) -> io::Result<u64> {
        let value = self.value();
        let changed = self.0.changed.wait_while(value, |value| *value == 0);
        Ok(std::mem::take(&mut *changed.unwrap_or_else(PoisonError::into_inner)))
    }

    /// Whether a read would return at once.
    pub(in crate::kvm) fn is_written(&self) -> bool {
        *self.value() != 0
    }

    /// Another handle of the same counter.
    ///
    /// # Errors
    /// None; Linux's has some.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(Arc::clone(&self.0)))
    }
}
