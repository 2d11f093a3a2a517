//! The build script's tests: how a broken guest is reported.

#[allow(dead_code)] // its `main` is cargo's
#[path = "../build.rs"]
mod build;
