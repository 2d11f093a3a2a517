//! Functions that the compiler calls, mostly to copy memory. The target x86_64-unknown-none brings
//! them along; the Linux target, which builds the kernel where the other is not
//! installed, leaves them to a libc.

#[cfg(target_os = "linux")]
mod memory {
    use core::arch::asm;

    /// What unwinding would call: a panic here never unwinds.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        loop {
            core::hint::spin_loop();
        }
    }

    /// The same.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() -> ! {
        loop {
            core::hint::spin_loop();
        }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        // SAFETY: the caller promises that both ranges are valid and do not overlap.
        unsafe {
            asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= length {
            // SAFETY: going upwards, no byte is written before it is read.
            return unsafe { memcpy(to, from, length) };
        }
        // SAFETY: the caller promises that both ranges are valid; they are copied from their ends.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") length => _,
                inout("rdi") to.add(length).sub(1) => _, inout("rsi") from.add(length).sub(1) => _,
                options(nostack));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
        // SAFETY: the caller promises that the range is valid.
        unsafe {
            asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") value as u8,
                options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
        for at in 0..length {
            // SAFETY: the caller promises that both ranges are valid.
            let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { memcmp(one, other, length) }
    }
}
