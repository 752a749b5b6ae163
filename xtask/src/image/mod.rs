//! `image`: the container image, made of static binaries and without a container engine.

mod archive;
mod elf;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

pub(crate) use self::archive::{Content, Image};
use crate::{command, fail, setup};

/// Name of the image; it has a host part, without which engines look for it under another name.
const NAME: &str = "policy-agent.local/policy-agent:dev";
/// Where it is written.
const FILE: &str = "target/image/policy-agent.tar";
/// The target, named, so that its flags do not reach build scripts and procedural macros, which must be dynamic.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where its binaries are built, apart from the others: other flags compile everything anew.
const FOLDER: &str = "target/image/build";

/// `cargo xtask image [--debug]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut release = true;
    for arg in args {
        match arg.as_str() {
            "--debug" => release = false,
            other => return Err(fail::argument("image", other)),
        }
    }
    setup::ensure(setup::Scope::Image)?;
    let path = make(release)?;
    let size = fs::metadata(&path).map_or(0, |meta| meta.len()) >> 20;
    eprintln!("made {FILE} ({size} MB): {NAME}");
    eprintln!("  docker load --input {FILE}");
    eprintln!("  ctr --namespace k8s.io images import {FILE}");
    Ok(())
}

/// Builds the binaries and writes the archive; returns its path. Without `release` it takes a third of the time, and
/// only the kernel's programs are optimised.
pub(crate) fn make(release: bool) -> Result<PathBuf> {
    let folder = binaries(release)?;
    let mut contents = vec![Content::folder("bin", 0o755), Content::folder("tmp", 0o1777)];
    for name in programs(&folder)? {
        let file = folder.join(&name);
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if let Some(loader) = elf::interpreter(&bytes).with_context(|| format!("cannot read {name}"))? {
            return Err(fail::hint(
                format!("{name} is not static: it asks for {loader}"),
                "apt-get install libc6-dev, which has libc.a",
            ));
        }
        contents.push(Content::file(&format!("bin/{name}"), bytes));
    }
    let image = Image { name: NAME, entrypoint: "/bin/policy-agent", contents };
    let path = command::root().join(FILE);
    let temporary = path.with_extension(format!("tar.{}", std::process::id()));
    fs::write(&temporary, image.archive()?)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, &path).with_context(|| format!("cannot move the image to {}", path.display()))?;
    Ok(path)
}

/// Builds every program of policy-agent as one file that needs no library.
fn binaries(release: bool) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--package", "policy-agent", "--bins"]);
    cargo.args(release.then_some("--release"));
    cargo.args(["--target", TARGET, "--target-dir", FOLDER]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    eprintln!("image: building static binaries");
    command::run(&mut cargo)?;
    let profile = if release { "release" } else { "debug" };
    Ok(command::root().join(FOLDER).join(TARGET).join(profile))
}

/// The programs that were built, as the crate's manifest names them.
fn programs(folder: &Path) -> Result<Vec<String>> {
    let manifest = command::root().join("policy-agent/Cargo.toml");
    let text = fs::read_to_string(&manifest).context("cannot read policy-agent's manifest")?;
    let names = bins(&text);
    for name in &names {
        let file = folder.join(name);
        anyhow::ensure!(file.is_file(), "{} was not built", file.display());
    }
    Ok(names)
}

fn bins(manifest: &str) -> Vec<String> {
    let sections = manifest.split("[[bin]]").skip(1);
    let name = |section: &str| {
        let line = section.lines().find_map(|line| line.strip_prefix("name = \""))?;
        line.strip_suffix('"').map(str::to_owned)
    };
    let mut names: Vec<String> = sections.filter_map(name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_programs_are_in_the_image() {
        let manifest = command::root().join("policy-agent/Cargo.toml");
        let names = bins(&fs::read_to_string(manifest).unwrap());
        assert!(names.contains(&"policy-agent".to_owned()) && names.contains(&"policyctl".to_owned()));
    }
}
