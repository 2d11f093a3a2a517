//! PID 1 of the lab's machine: mounts what a Linux needs, loads KVM, runs the
//! jobs and reports each on the second serial port.

#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod heartbeat;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod terminal;

#[cfg(target_os = "linux")]
fn main() -> ! {
    init::run()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("vmexit-lab-init: this program is PID 1 of the lab's Linux and runs nowhere else");
    std::process::exit(2);
}
