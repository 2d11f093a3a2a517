//! Runs the lab's tests where there can be a lab.

#[cfg(unix)]
mod linux;
#[cfg(unix)]
mod unix;

fn main() {
    #[cfg(unix)]
    unix::main();
    #[cfg(not(unix))]
    println!("not run here: the lab needs Linux or macOS");
}
