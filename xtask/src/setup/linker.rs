//! bpf-linker: its version, and that its LLVM reads what the compiler's LLVM writes.

use std::path::Path;

use super::{Mend, Missing, apt, toolchain::Toolchain};
use crate::command;

const VERSION: &str = "0.13.0";
const WHY: &str = "links the kernel object";

/// Nothing, when the linker fits the toolchain.
pub(super) fn missing(toolchain: &Toolchain) -> Option<Missing> {
    let Some(program) = command::find("bpf-linker") else {
        return Some(Missing { what: "bpf-linker".to_owned(), why: WHY, mend: mend(toolchain.llvm) });
    };
    let version = said(&program, &["--version"]);
    if version.split_whitespace().nth(1).is_none_or(|version| triple(version) < triple(VERSION)) {
        let what = format!("bpf-linker {VERSION} (here is: {})", version.trim());
        return Some(Missing { what, why: WHY, mend: mend(toolchain.llvm) });
    }
    let llvm = llvm(&program);
    // Bitcode is readable by the same or a later LLVM; one that does not tell its version is given a try.
    if llvm != 0 && llvm < toolchain.llvm {
        let what = format!("bpf-linker with LLVM {} (here is LLVM {llvm})", toolchain.llvm);
        let why = "reads what the compiler writes: its LLVM must not be older than the compiler's";
        return Some(Missing { what, why, mend: mend(toolchain.llvm) });
    }
    None
}

/// The linker is compiled here, against the LLVM that fits.
fn mend(llvm: u32) -> Mend {
    let packages = [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "zlib1g-dev".into(),
        "libzstd-dev".into(),
    ];
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if apt::candidate(&packages[0]).is_some() && !packages.iter().all(|package| apt::installed(package)) {
        return Mend::Packages(packages.to_vec());
    }
    let install = format!(
        "PATH={prefix}/bin:$PATH RUSTFLAGS=-L{prefix}/lib cargo install bpf-linker --version {VERSION} --locked \
         --force --no-default-features --features llvm-{llvm}"
    );
    if Path::new(&prefix).is_dir() {
        return Mend::Commands(vec![install]);
    }
    Mend::ByHand(format!("install LLVM {llvm} with its headers under {prefix}, then: {install}"))
}

/// The major version of the LLVM inside the linker, 0 when it does not say.
fn llvm(program: &Path) -> u32 {
    // LLVM's own argument prints its version and ends the program before it looks for an input.
    let text = said(program, &["--llvm-args=--version", "--output", "/dev/null", "/dev/null"]);
    let number = text.lines().find_map(|line| line.split("LLVM version ").nth(1));
    number.and_then(|version| version.split('.').next()?.trim().parse().ok()).unwrap_or_default()
}

fn said(program: &Path, args: &[&str]) -> String {
    command::new(&program.to_string_lossy())
        .args(args)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

fn triple(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(triple("0.9.15") < triple(VERSION));
        assert!(triple("0.13.1") > triple(VERSION));
    }

    #[test]
    fn the_mend_asks_for_the_compilers_llvm() {
        // An LLVM that no archive has: only the user can bring it.
        let Mend::ByHand(sentence) = mend(99) else { panic!("an LLVM 99 is here?") };
        assert!(sentence.contains("llvm-99") && sentence.contains(VERSION), "{sentence}");
    }
}
