//! The Rust toolchain that compiles the kernel object, and which LLVM it speaks.

use std::{env, path::Path, process::Command};

use super::{Mend, Missing, apt};
use crate::{command, fail};

/// Debian's compiler, linked under this name, is preferred: its version does not move every night.
const DEBIAN: &str = "policy-bpf";
const NIGHTLY: &str = "nightly";
/// The oldest compiler for the workspace, as `rust-version` in Cargo.toml says.
const OLDEST: (u32, u32) = (1, 95);

/// A toolchain that can compile the kernel object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Its name for rustup.
    pub(crate) name: String,
    /// The major version of the LLVM inside, 0 when it does not say.
    pub(crate) llvm: u32,
    sysroot: String,
}

impl Toolchain {
    /// Whether `cargo clippy` works in it.
    pub(crate) fn has_clippy(&self) -> bool {
        Path::new(&self.sysroot).join("bin/cargo-clippy").is_file()
    }
}

/// The toolchain to use.
///
/// # Errors
/// When there is none; [`super::ensure`] comes first and brings it.
pub(crate) fn choose() -> anyhow::Result<Toolchain> {
    find().map_err(|missing| fail::hint(format!("there is no {}", missing.what), "cargo xtask setup"))
}

/// The toolchain to use, or what is missing for one: the same choice as the build script's.
pub(super) fn find() -> Result<Toolchain, Missing> {
    if let Some(name) = env::var("POLICY_BPF_TOOLCHAIN").ok().filter(|name| !name.is_empty()) {
        return usable(&name).ok_or_else(|| Missing {
            what: format!(
                "Rust toolchain '{name}', which POLICY_BPF_TOOLCHAIN names, with its library's sources"
            ),
            why: "compiles the kernel object",
            mend: Mend::Commands(vec![format!("rustup toolchain install {name} --component rust-src")]),
        });
    }
    [DEBIAN, NIGHTLY].into_iter().find_map(usable).ok_or_else(|| Missing {
        what: "Rust toolchain with its library's sources".to_owned(),
        why: "compiles the kernel object: there is no ready-made core library for the BPF target",
        mend: mend(),
    })
}

fn usable(name: &str) -> Option<Toolchain> {
    let rustc = |arg: &str| {
        let mut rustup = Command::new("rustup");
        // A look must not download anything.
        rustup.env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTUP_TOOLCHAIN");
        command::output(rustup.args(["run", name, "rustc", arg])).ok()
    };
    let version = rustc("-vV")?;
    let sysroot = rustc("--print=sysroot")?.trim().to_owned();
    let library = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    let field = |key| version.lines().find_map(|line: &str| line.strip_prefix(key));
    if !library.is_file() || numbers(field("release: ")?) < OLDEST {
        return None;
    }
    let llvm = field("LLVM version: ").map_or(0, |llvm| numbers(llvm).0);
    Some(Toolchain { name: name.to_owned(), llvm, sysroot })
}

fn mend() -> Mend {
    if command::find("rustup").is_none() {
        return Mend::ByHand("install rustup, which the build of the kernel object calls".to_owned());
    }
    let candidate = apt::candidate("rustc-web").map(|version| numbers(&version));
    if candidate.is_some_and(|version| version >= OLDEST) {
        let packages = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];
        if packages.iter().all(|package| apt::installed(package)) {
            return Mend::Commands(vec![format!("rustup toolchain link {DEBIAN} /usr")]);
        }
        return Mend::Packages(packages.map(str::to_owned).to_vec());
    }
    let install = format!(
        "rustup toolchain install {NIGHTLY} --profile minimal --component rust-src --component clippy"
    );
    Mend::Commands(vec![install])
}

/// The first two numbers of a version.
pub(super) fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or_default());
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(numbers("1.96.0+dfsg1-1~deb12u2"), (1, 96));
        assert_eq!(numbers("22.1.8"), (22, 1));
        assert_eq!(numbers("1.97.0-nightly"), (1, 97));
        assert!(numbers("1.85.0") < OLDEST);
    }

    #[test]
    fn an_absent_toolchain_is_not_usable() {
        assert_eq!(usable("no-such-toolchain"), None);
    }
}
