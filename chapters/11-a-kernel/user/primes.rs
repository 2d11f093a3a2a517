//! primes: a program in Rust. A copy of this file with another name is another
//! program: `cargo run --bin ch11 -- --program NAME`.

#![no_std]
#![no_main]

mod system;

use system::println;

const LIMIT: usize = 100;

/// Ends with code 0.
#[unsafe(no_mangle)]
fn main() -> u8 {
    let mut composite = [false; LIMIT];
    let mut primes = 0;
    for number in 2..LIMIT {
        if !composite[number] {
            primes += 1;
            composite.iter_mut().skip(number * number).step_by(number).for_each(|other| *other = true);
        }
    }
    println!("{primes} primes below {LIMIT}");
    println!("that took {} system calls", system::calls());
    0
}
