//! Programs out of Debian packages that are not installed, so that no service of theirs is ever started.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::{From, Program, apt, mend, place};
use crate::command;

/// Fetches the packages of these programs and unpacks what is wanted of them.
pub(super) fn unpack(dir: &Path, programs: &[&Program]) -> Result<()> {
    let wanted: Vec<(&str, &str, &str)> = programs
        .iter()
        .filter_map(|program| match program.from {
            From::Debian(package, path) => Some((program.name, package, path)),
            From::Kubernetes(_) | From::Module(_) | From::Required(_) | From::C(_) => None,
        })
        .collect();
    let packages: BTreeSet<&str> = wanted.iter().map(|(_, package, _)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    if packages.iter().any(|package| apt::candidate(package).is_none()) && command::is_root() {
        mend::refresh();
    }
    let work = dir.join("debian");
    for package in packages {
        eprintln!("setup: fetching {package}");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        // As root apt would hand the download to a user of its own, who may not write here.
        let mut fetch = apt::get();
        fetch.current_dir(&work).args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]);
        command::output(&mut fetch)?;
        for entry in fs::read_dir(&work).context("cannot list the packages")? {
            let path = entry.context("cannot list the packages")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                command::output(command::new("dpkg-deb").arg("-x").arg(&path).arg(&work))?;
            }
        }
        for (name, _, path) in wanted.iter().filter(|(_, from, _)| *from == package) {
            place(&work.join(path), dir, name)?;
        }
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}
