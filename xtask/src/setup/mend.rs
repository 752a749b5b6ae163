//! Bringing what is missing: packages through apt, the rest by the commands a user would type.

use std::process::Stdio;

use anyhow::Result;

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

fn shell(line: &str) -> Result<()> {
    eprintln!("setup: {line}");
    command::run(command::new("sh").args(["-c", line]))
}
