//! A signal once a second: it ends a KVM_RUN whose guest never leaves.

use std::io;

/// Lets the signal come from now on.
pub fn start() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    const SECOND: libc::timeval = libc::timeval { tv_sec: 1, tv_usec: 0 };
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: all-zero bytes are a valid sigaction; the handler does nothing, which any thread may at any time.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        // Without SA_RESTART: KVM_RUN returns EINTR.
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut())
    };
    let timer = libc::itimerval { it_interval: SECOND, it_value: SECOND };
    // SAFETY: the timer is a complete itimerval, and nobody wants the old one.
    if set != 0 || unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) } != 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
