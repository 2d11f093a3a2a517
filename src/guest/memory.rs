//! A guest's RAM.

use crate::guest::Image;

/// Why guest memory could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is 0 or no multiple of 4096.
    #[error("guest memory comes in pages of 4096 bytes, and {0} bytes are no whole number of them")]
    Size(usize),
    /// The host has not that much.
    #[error("the host gives no {size} bytes for the guest's memory: {reason}; ask for less")]
    Host { size: usize, reason: String },
    /// Part of the range is outside.
    #[error(
        "guest-physical {address:#x} + {length:#x} bytes is outside the guest's memory of {size:#x} bytes"
    )]
    Outside { address: u64, length: usize, size: usize },
}

/// `size` bytes of RAM at guest-physical address 0, all zero: one anonymous
/// mapping of this process. No reference into it is ever formed, because the
/// guest may write it at any time; bytes are copied in and out.
#[derive(Debug)]
pub struct Memory {
    map: Map,
    size: usize,
}

impl Memory {
    /// # Errors
    /// When `size` is no multiple of 4096, or the host has not that much.
    pub fn new(size: usize) -> Result<Self, MemoryError> {
        if size == 0 || !size.is_multiple_of(4096) {
            return Err(MemoryError::Size(size));
        }
        let map = Map::new(size).map_err(|reason| MemoryError::Host { size, reason })?;
        Ok(Self { map, size })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The address in this process of the guest's byte 0: what
    /// `KVM_SET_USER_MEMORY_REGION` calls `userspace_addr`.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.map.host_address()
    }

    /// Copies `bytes` to the guest-physical `address`.
    ///
    /// # Errors
    /// When part of it is outside; nothing is written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check(address, bytes.len())?;
        self.map.write(address, bytes);
        Ok(())
    }

    /// Copies `length` bytes from the guest-physical `address`.
    ///
    /// # Errors
    /// When part of it is outside.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, MemoryError> {
        self.check(address, length)?;
        let mut bytes = vec![0; length];
        self.map.read(address, &mut bytes);
        Ok(bytes)
    }

    /// Fills `bytes` from the guest-physical `address`: [`read`](Self::read) without a new buffer.
    ///
    /// # Errors
    /// When part of it is outside.
    pub fn read_into(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.check(address, bytes.len())?;
        self.map.read(address, bytes);
        Ok(())
    }

    /// Copies an image to the addresses that it was linked for.
    ///
    /// # Errors
    /// When part of it is outside.
    pub fn load(&self, image: &Image) -> Result<(), MemoryError> {
        for segment in image.segments() {
            self.check(segment.address, segment.memory_size)?;
            self.write(segment.address, &segment.bytes)?;
            let rest = segment.memory_size.saturating_sub(segment.bytes.len());
            self.write(segment.address + segment.bytes.len() as u64, &vec![0; rest])?;
        }
        Ok(())
    }

    fn check(&self, address: u64, length: usize) -> Result<(), MemoryError> {
        let end = address.checked_add(length as u64);
        if end.is_some_and(|end| end <= self.size as u64) {
            return Ok(());
        }
        Err(MemoryError::Outside { address, length, size: self.size })
    }
}

/// vm-memory's mapping, on the hosts that it compiles for.
#[cfg(unix)]
#[derive(Debug)]
struct Map(vm_memory::GuestMemoryMmap<()>);

#[cfg(unix)]
impl Map {
    fn new(size: usize) -> Result<Self, String> {
        let map = vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), size)]);
        Ok(Self(map.map_err(|error| error.to_string())?))
    }

    fn host_address(&self) -> u64 {
        use vm_memory::GuestMemoryBackend;
        let start = self.0.get_host_address(vm_memory::GuestAddress(0));
        start.expect("the mapping starts at guest-physical 0") as u64
    }

    /// The caller has checked that the range is inside.
    fn write(&self, address: u64, bytes: &[u8]) {
        use vm_memory::Bytes;
        let done = self.0.write_slice(bytes, vm_memory::GuestAddress(address));
        done.expect("the range is inside the mapping");
    }

    /// The caller has checked that the range is inside.
    fn read(&self, address: u64, bytes: &mut [u8]) {
        use vm_memory::Bytes;
        let done = self.0.read_slice(bytes, vm_memory::GuestAddress(address));
        done.expect("the range is inside the mapping");
    }
}

/// A page-aligned block of the heap, where vm-memory does not compile.
#[cfg(not(unix))]
#[derive(Debug)]
struct Map {
    start: std::ptr::NonNull<u8>,
    layout: std::alloc::Layout,
}

#[cfg(not(unix))]
impl Map {
    fn new(size: usize) -> Result<Self, String> {
        let layout = std::alloc::Layout::from_size_align(size, 4096).map_err(|e| e.to_string())?;
        // SAFETY: the layout's size is not 0, which `Memory::new` checked.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = std::ptr::NonNull::new(start).ok_or("out of memory")?;
        Ok(Self { start, layout })
    }

    fn host_address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The caller has checked that the range is inside.
    fn write(&self, address: u64, bytes: &[u8]) {
        // SAFETY: the range is inside the block, which `Memory::check` has seen to, and the block
        // is reached through this pointer only, so it cannot overlap `bytes`.
        unsafe {
            let to = self.start.as_ptr().add(address as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// The caller has checked that the range is inside.
    fn read(&self, address: u64, bytes: &mut [u8]) {
        // SAFETY: as in `write`.
        unsafe {
            let from = self.start.as_ptr().add(address as usize);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
    }
}

#[cfg(not(unix))]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the block came from `alloc_zeroed` with this layout and is freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_gives_back_what_was_written_and_starts_as_zeros() {
        let memory = Memory::new(8192).expect("two pages");
        memory.write(4094, b"abcd").expect("inside");
        assert_eq!(memory.read(4093, 6).expect("inside"), b"\0abcd\0");
    }

    #[test]
    fn a_range_that_leaves_the_memory_is_refused_whole() {
        let memory = Memory::new(4096).expect("a page");
        assert!(memory.write(4095, b"ab").is_err());
        assert_eq!(memory.read(4095, 1).expect("inside"), [0]);
        assert!(memory.read(u64::MAX, 2).is_err());
    }

    #[test]
    fn memory_is_whole_pages() {
        for size in [0, 1, 4097] {
            assert!(matches!(Memory::new(size), Err(MemoryError::Size(_))));
        }
        assert!(matches!(Memory::new(1 << 62), Err(MemoryError::Host { .. })));
    }
}
