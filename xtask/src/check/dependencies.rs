//! What the pure crates may link, and the versions that are pinned.

use std::fs;

use anyhow::{Context, Result};

use super::Finding;
use crate::command;

/// A pure crate, its manifest, and the crates that it may name.
const PURE: &[(&str, &str, &[&str])] = &[
    ("policy-common", "policy-common/Cargo.toml", &[]),
    (
        "policy-engine",
        "policy-agent/engine/Cargo.toml",
        &["policy-common", "imbl", "ipnet", "serde", "serde_json", "thiserror"],
    ),
];
/// Crates that do I/O: they may not come in through another one either.
const IMPURE: &[&str] =
    &["aya", "aya-obj", "tokio", "kube", "k8s-openapi", "libc", "rustix", "nix", "getrandom", "mio"];
/// Later releases of these ask for a compiler that the kernel object's toolchain does not have.
const PINNED: &[&str] = &["aya", "aya-build", "aya-ebpf", "aya-log", "aya-log-ebpf", "aya-obj"];

/// Both rules, on the workspace as it is.
pub(super) fn check() -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (name, manifest, allowed) in PURE {
        let text = read(manifest)?;
        for depth in ["1", "99"] {
            for found in tree(name, depth)?.iter().filter(|found| *found != name) {
                let direct = depth == "1" && !allowed.contains(&found.as_str());
                if direct || IMPURE.contains(&found.as_str()) {
                    findings.push(Finding {
                        file: (*manifest).to_owned(),
                        line: line_of(&text, found),
                        what: format!("{name} links {found}"),
                        hint: "pure crates have no I/O, clock or randomness; put this code into policy-agent",
                    });
                }
            }
        }
    }
    findings.extend(pins("Cargo.toml", &read("Cargo.toml")?));
    findings.dedup();
    Ok(findings)
}

/// The crates that a normal build of this one links, by name.
fn tree(package: &str, depth: &str) -> Result<Vec<String>> {
    let args =
        ["tree", "--locked", "--package", package, "--edges", "normal", "--prefix", "none", "--depth", depth];
    let text = command::output(command::cargo().args(args).args(["--format", "{p}"]))?;
    let mut names: Vec<String> =
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// A dependency on aya without an exact version.
fn pins(file: &str, manifest: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        let Some((name, value)) = line.split_once('=') else { continue };
        if PINNED.contains(&name.trim()) && !value.contains("\"=") {
            findings.push(Finding {
                file: file.to_owned(),
                line: index + 1,
                what: format!("{} is not pinned", name.trim()),
                hint: "write the exact version, as \"=0.14.0\"",
            });
        }
    }
    findings
}

fn line_of(manifest: &str, package: &str) -> usize {
    manifest.lines().position(|line| line.starts_with(package)).map_or(1, |index| index + 1)
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(command::root().join(file)).with_context(|| format!("cannot read {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loose_aya_is_found() {
        let manifest = "[dependencies]\naya = \"0.14\"\naya-obj = \"=0.3.0\"\nserde = \"1\"\n";
        let found = pins("Cargo.toml", manifest);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].what.as_str()), (2, "aya is not pinned"));
        assert_eq!(pins("Cargo.toml", "aya = { version = \"=0.14.0\" }\n"), []);
    }

    #[test]
    fn an_impure_crate_is_seen_through_others() {
        let crates = tree("policy-agent", "99").unwrap();
        assert!(crates.iter().any(|name| name == "tokio" || name == "libc"), "{crates:?}");
    }
}
