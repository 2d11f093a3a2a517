//! Ctrl-C and the deadline: how `KVM_RUN` is made to come back.
//!
//! Both are signals with the same handler. It sets `immediate_exit` in the
//! kvm_run page of the vCPU that its thread runs; the signal itself takes
//! `KVM_RUN` out of the guest, and if it came a moment before the ioctl,
//! `immediate_exit` keeps it from going in (KVM's API documentation, "The
//! kvm_run structure").

#[cfg(host_kvm)]
pub use host::{Kick, ThisThread, came, prepare};

#[cfg(host_kvm)]
mod host {
    use std::cell::Cell;
    use std::mem::{MaybeUninit, zeroed};
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, Ordering, fence};
    use std::time::Duration;

    use crate::run::terminal;

    /// The exit code of a program that Ctrl-C ended.
    const INTERRUPTED: i32 = 130;
    /// After the deadline the kick is repeated, in case one met user space.
    const AGAIN: Duration = Duration::from_millis(10);

    static CTRL_C: AtomicBool = AtomicBool::new(false);

    thread_local! {
        /// `immediate_exit` of the vCPU that this thread runs, or null.
        static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
    }

    /// Whether Ctrl-C was typed.
    pub fn came() -> bool {
        CTRL_C.load(Ordering::Relaxed)
    }

    /// Handles Ctrl-C, and lets a closed pipe (`ch01 | head -1`) end the program
    /// as it ends any other.
    pub fn prepare() {
        handle(libc::SIGINT);
        // SAFETY: every signal may have the handler SIG_DFL.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }

    fn handle(signal: libc::c_int) {
        // SAFETY: `kick` is async-signal-safe: atomics, a const thread-local without a destructor,
        // tcsetattr and _exit.
        unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = kick as *const () as libc::sighandler_t;
            libc::sigaction(signal, &raw const action, null_mut());
        }
    }

    extern "C" fn kick(signal: libc::c_int) {
        let again = signal == libc::SIGINT && CTRL_C.swap(true, Ordering::Relaxed);
        let flag = IMMEDIATE_EXIT.get();
        if signal == libc::SIGINT && (again || flag.is_null()) {
            // No guest to bring back, or the hypervisor does not listen: end here.
            terminal::restore();
            // SAFETY: _exit may be called from a signal handler.
            unsafe { libc::_exit(INTERRUPTED) }
        }
        if !flag.is_null() {
            // SAFETY: the pointer is null unless a `Kick` of this thread lives, and its vCPU's
            // kvm_run page is mapped for as long as that.
            unsafe { flag.write_volatile(1) };
            fence(Ordering::SeqCst);
        }
    }

    /// A thread that runs a vCPU, as another one ends it.
    #[derive(Clone, Copy)]
    pub struct ThisThread(libc::pid_t);

    impl ThisThread {
        /// The thread that asks.
        pub fn get() -> Self {
            // SAFETY: a thread may always ask for its own number.
            Self(unsafe { libc::gettid() })
        }

        /// Does what Ctrl-C does; nothing where the thread has ended.
        pub fn interrupt(self) {
            // SAFETY: tgkill looks for the thread inside this process only, and a signal touches no
            // memory of ours but through its handler.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, libc::SIGINT) };
        }
    }

    /// A timer that kicks the vCPU of this thread; disarmed when dropped.
    pub struct Kick {
        timer: libc::timer_t,
    }

    impl Kick {
        /// Kicks `after` that time, or only for Ctrl-C; `immediate_exit` must stay
        /// valid until the value is dropped, on the thread that made it. `None` when
        /// the kernel has no timer left.
        pub fn arm(immediate_exit: *mut u8, after: Option<Duration>) -> Option<Self> {
            let mut timer = MaybeUninit::uninit();
            // SAFETY: `event` and `timer` are valid for the call, and the thread that the signal
            // is for is this one.
            let made = unsafe {
                let mut event: libc::sigevent = zeroed();
                event.sigev_notify = libc::SIGEV_THREAD_ID;
                event.sigev_signo = libc::SIGALRM;
                event.sigev_notify_thread_id = libc::gettid();
                libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr())
            };
            if made != 0 {
                return None;
            }
            handle(libc::SIGALRM);
            IMMEDIATE_EXIT.set(immediate_exit);
            // SAFETY: timer_create succeeded, so it has written the timer.
            let kick = Self { timer: unsafe { timer.assume_init() } };
            // A time of zero disarms the timer.
            let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
            let times = libc::itimerspec { it_interval: timespec(AGAIN), it_value: timespec(after) };
            // SAFETY: the timer exists, and `times` is valid for the call.
            unsafe { libc::timer_settime(kick.timer, 0, &raw const times, null_mut()) };
            Some(kick)
        }
    }

    impl Drop for Kick {
        fn drop(&mut self) {
            IMMEDIATE_EXIT.set(null_mut());
            // SAFETY: the timer exists, and is deleted once.
            unsafe { libc::timer_delete(self.timer) };
        }
    }

    fn timespec(duration: Duration) -> libc::timespec {
        libc::timespec {
            // At most a day: a deadline's limit.
            tv_sec: duration.as_secs() as _,
            tv_nsec: libc::c_long::from(duration.subsec_nanos()),
        }
    }
}

/// Where there is no KVM there is no ioctl to be brought back from: the system's
/// own handling of Ctrl-C ends the program.
#[cfg(not(host_kvm))]
mod portable {
    use std::time::Duration;

    pub fn came() -> bool {
        false
    }

    pub fn prepare() {}

    #[derive(Clone, Copy)]
    pub struct ThisThread;

    impl ThisThread {
        pub fn get() -> Self {
            Self
        }

        pub fn interrupt(self) {}
    }

    pub struct Kick;

    impl Kick {
        pub fn arm(_: *mut u8, _: Option<Duration>) -> Option<Self> {
            Some(Self)
        }
    }
}

#[cfg(not(host_kvm))]
pub use portable::{Kick, ThisThread, came, prepare};
