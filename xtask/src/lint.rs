//! `fmt` and `lint`: rustfmt and clippy as the continuous integration wants them.

use anyhow::Result;

use crate::{
    command, fail,
    setup::{self, toolchain},
};

/// `cargo xtask fmt [--fix]`
pub(crate) fn fmt(args: &[String]) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args(["fmt", "--all"]);
    match args {
        [] => {
            cargo.args(["--", "--check"]);
        }
        [arg] if arg == "--fix" => {}
        [other, ..] => return Err(fail::argument("fmt", other)),
    }
    command::run(&mut cargo)
        .map_err(|error| error.context("the formatting differs; `cargo xtask fmt --fix` mends it"))
}

/// `cargo xtask lint`
pub(crate) fn lint(args: &[String]) -> Result<()> {
    if let Some(other) = args.first() {
        return Err(fail::argument("lint", other));
    }
    setup::ensure(setup::Scope::Build)?;
    command::run(command::workspace("clippy").args(["--all-targets", "--", "-D", "warnings"]))?;
    kernel()
}

/// The kernel crates are linted for the BPF target, by the toolchain that builds them.
fn kernel() -> Result<()> {
    let chosen = toolchain::choose()?;
    if !chosen.has_clippy() {
        eprintln!("lint: toolchain '{}' has no clippy, the kernel programs are not linted", chosen.name);
        return Ok(());
    }
    let mut bpf = command::new("rustup");
    bpf.args([
        "run",
        &chosen.name,
        "cargo",
        "clippy",
        "--locked",
        "--release",
        "--target",
        "bpfel-unknown-none",
    ])
    .args([
        "-Z",
        "build-std=core",
        "--package",
        "policy-common",
        "--package",
        "policy-ebpf",
        "--lib",
        "--bins",
    ])
    .args(["--target-dir", "target/lint-bpf", "--", "-D", "warnings"])
    // A toolchain that is not nightly refuses -Z without it; it holds for this call alone.
    .env("RUSTC_BOOTSTRAP", "1")
    .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"")
    .env_remove("RUSTC")
    .env_remove("RUSTUP_TOOLCHAIN");
    command::run(&mut bpf)
}
