//! Bringing what is missing: packages through apt, the rest by the commands a user would type.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use anyhow::{Context, Result};

use super::{Archive, Mend, Missing, apt};
use crate::command;

/// Whether this process may install things itself.
pub(super) fn able() -> bool {
    command::is_root() && command::find("apt-get").is_some()
}

/// Reads the package lists anew: a fresh machine has none. Goes on with the old ones where that fails.
pub(super) fn refresh() {
    eprintln!("setup: reading the package lists (apt-get update)");
    if let Err(error) = command::run(apt::get().args(["-qq", "update"])) {
        eprintln!("setup: {error}; going on with the lists that are here");
    }
}

/// Tries everything once; what only a user can do is left out.
pub(super) fn all(missing: &[Missing]) -> Result<()> {
    let mut packages: Vec<String> = Vec::new();
    for one in missing {
        match &one.mend {
            Mend::Packages(names) => packages.extend(names.iter().cloned()),
            Mend::Backport(_) | Mend::Commands(_) | Mend::Mount(_) | Mend::ByHand(_) => {}
        }
    }
    packages.sort();
    packages.dedup();
    if !packages.is_empty() {
        eprintln!("setup: installing {}", packages.join(" "));
        let _quiet = NoStarts::new()?;
        // Its stdout is a line per package and step; errors are on stderr.
        let mut install = apt::get();
        install.args(["-qq", "install", "-y", "--no-install-recommends"]).args(&packages);
        command::run(install.stdout(Stdio::null()))?;
    }
    for one in missing {
        match &one.mend {
            Mend::Commands(lines) => lines.iter().try_for_each(|line| shell(line))?,
            Mend::Mount(line) => shell(line)?,
            Mend::Backport(name) => {
                let release = apt::release().unwrap_or_default();
                eprintln!("setup: installing {name} from {release}-backports");
                Archive::with_machine_sources(&format!("{release}-backports"))?.install(name)?;
            }
            Mend::Packages(_) | Mend::ByHand(_) => {}
        }
    }
    Ok(())
}

/// While this lives, packages that bring a service do not start it: tests run such programs themselves.
struct NoStarts {
    made: bool,
}

impl NoStarts {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> Result<Self> {
        // Whoever has one has decided.
        let made = !Path::new(Self::POLICY).exists();
        if made {
            fs::write(Self::POLICY, "#!/bin/sh\nexit 101\n")
                .and_then(|()| fs::set_permissions(Self::POLICY, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("cannot write {}", Self::POLICY))?;
        }
        Ok(Self { made })
    }
}

impl Drop for NoStarts {
    fn drop(&mut self) {
        if self.made
            && let Err(error) = fs::remove_file(Self::POLICY)
        {
            eprintln!("setup: cannot remove {}: {error}", Self::POLICY);
        }
    }
}

fn shell(line: &str) -> Result<()> {
    eprintln!("setup: {line}");
    command::run(command::new("sh").args(["-c", line]))
}
