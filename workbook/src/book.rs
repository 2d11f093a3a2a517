//! `vmexit book`: builds the book with mdBook, opens it, checks it.
use clap::Args;
/// What `vmexit book` was asked for.
#[derive(Debug, Args)]
pub struct BookArguments {}
/// x
pub fn run(_: &BookArguments) -> anyhow::Result<u8> {
    Ok(0)
}
