//! The errors of KVM's ioctls that the software machine returns, with Linux's
//! numbers on every host.

/// An errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What it needs is not there.
    pub const ENOENT: Self = Self(2);
    /// Interrupted: `immediate_exit` was set.
    pub const EINTR: Self = Self(4);
    /// There is no such device.
    pub const ENXIO: Self = Self(6);
    /// Too many CPUID entries.
    pub const E2BIG: Self = Self(7);
    /// Something waits already.
    pub const EBUSY: Self = Self(16);
    /// It exists already, or overlaps what exists.
    pub const EEXIST: Self = Self(17);
    /// What was given cannot be.
    pub const EINVAL: Self = Self(22);
}
