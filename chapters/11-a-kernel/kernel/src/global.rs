//! One value, for one CPU.

use core::cell::{RefCell, RefMut};

/// A static that can be changed. A second `get` while the first is in use panics.
pub struct Global<T>(RefCell<T>);

// SAFETY: this kernel runs on one CPU and never turns interrupts on, so there is one
// thread of execution; an exception's handler that meets a value in use panics.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// The value, for as long as the result lives.
    pub fn get(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }

    /// The value's place, for the CPU, which keeps its own pointers to tables.
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}
