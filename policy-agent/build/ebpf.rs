//! Builds the kernel object `policy-bpf` into `OUT_DIR`, with whichever toolchain can compile `core` for the BPF target.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use aya_build::{Package, Toolchain};

/// Name of the binary target, and of the file in `OUT_DIR`.
const OBJECT: &str = "policy-bpf";
/// A distribution's toolchain, linked into rustup under this name by `cargo xtask setup`.
const LINKED: &str = "policy-bpf";

/// Builds the object, or an empty file with `AYA_BUILD_SKIP=1` (for checks that never load it).
pub(crate) fn build() -> Result<()> {
    println!("cargo:rerun-if-env-changed=POLICY_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .parent()
        .context("the package is not inside the workspace")?
        .to_path_buf();
    // The object is made from these two crates; aya-build watches the first.
    for part in ["policy-common/src", "policy-common/Cargo.toml", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(part).display());
    }
    if env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v.eq_ignore_ascii_case("true")) {
        let out = PathBuf::from(env::var("OUT_DIR")?).join(OBJECT);
        return fs::write(&out, []).with_context(|| format!("write {}", out.display()));
    }
    check_linker()?;
    let toolchain = toolchain()?;
    if !is_nightly(&toolchain) {
        // SAFETY: the build script has one thread, and only the nested build inherits its environment.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    }
    // SAFETY: as above. Progress lines of the nested build would be shown as warnings.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    let crate_dir = root.join("policy-ebpf");
    let root_dir = crate_dir.to_str().context("the path of the workspace is not UTF-8")?;
    let package = Package { name: "policy-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))
        .with_context(|| format!("build the kernel object with toolchain `{toolchain}`"))
}

fn check_linker() -> Result<()> {
    let found =
        Command::new("bpf-linker").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|s| s.success()) {
        bail!("bpf-linker is missing: the kernel object cannot be linked\nhint: cargo xtask setup");
    }
    Ok(())
}

fn toolchain() -> Result<String> {
    if let Ok(name) = env::var("POLICY_BPF_TOOLCHAIN")
        && !name.is_empty()
    {
        if !has_source(&name) {
            bail!(
                "POLICY_BPF_TOOLCHAIN={name}: no such toolchain, or it has no library source\nhint: cargo xtask setup"
            );
        }
        return Ok(name);
    }
    // The distribution's first: it does not change overnight, and the linker was made for its LLVM.
    [LINKED, "nightly"].into_iter().find(|name| has_source(name)).map(str::to_owned).context(
        "no Rust toolchain can build for the BPF target: neither a linked `policy-bpf` nor `nightly` with rust-src\n\
         hint: cargo xtask setup",
    )
}

fn rustc(toolchain: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("rustup");
    // A probe must not download anything.
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", toolchain, "rustc"]).args(arguments);
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn has_source(toolchain: &str) -> bool {
    rustc(toolchain, &["--print", "sysroot"])
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

fn is_nightly(toolchain: &str) -> bool {
    rustc(toolchain, &["--version"]).is_some_and(|v| v.contains("-nightly") || v.contains("-dev"))
}
