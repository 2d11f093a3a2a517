//! VM Exit: build a hypervisor on KVM, one exit at a time.

pub mod transcript;
