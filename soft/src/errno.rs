//! The errors of KVM's ioctls that the software machine returns, with Linux's
//! numbers on every host.

/// An errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// There is no such slot, or it has no log.
    pub const ENOENT: Self = Self(2);
    /// Interrupted: `immediate_exit` was set.
    pub const EINTR: Self = Self(4);
    /// Too many CPUID entries.
    pub const E2BIG: Self = Self(7);
    /// Something waits already.
    pub const EBUSY: Self = Self(16);
    /// It exists already, or overlaps what exists.
    pub const EEXIST: Self = Self(17);
    /// What was given cannot be.
    pub const EINVAL: Self = Self(22);
}
