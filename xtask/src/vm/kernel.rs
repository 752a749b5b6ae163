//! The kernels: where Debian has them, and fetching the newest of each into a cache.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    command, fail,
    setup::{Archive, archive_uri},
};

/// A kernel to test on.
pub(super) struct Kernel {
    /// What a user calls it.
    pub(super) name: &'static str,
    /// Whether it must be had: some suites leave the archives or move on.
    pub(super) required: bool,
    /// Suites that may have it, the best first.
    suites: &'static [&'static str],
    /// How the package's version begins, and what it contains.
    version: (&'static str, &'static str),
}

/// From the oldest that the programs support to the newest there is.
pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        name: "5.10",
        required: false,
        suites: &["bullseye-security", "bullseye"],
        version: ("5.10.0-", ""),
    },
    Kernel {
        name: "6.1",
        required: true,
        suites: &["bookworm-security", "bookworm"],
        version: ("6.1.0-", ""),
    },
    Kernel {
        name: "6.12",
        required: true,
        suites: &["bookworm-security", "trixie"],
        version: ("6.12.", "+deb"),
    },
    Kernel { name: "6.18", required: false, suites: &["trixie-backports"], version: ("6.18.", "+deb") },
    Kernel { name: "sid", required: false, suites: &["sid"], version: ("", "+deb") },
];

/// A kernel's unpacked packages.
pub(super) struct Unpacked {
    /// Where they are.
    pub(super) dir: PathBuf,
    /// Which package and suite they came from.
    pub(super) package: String,
}

/// The kernel of this name.
pub(super) fn named(name: &str) -> Result<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
        let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        fail::hint(format!("there is no kernel '{name}'"), format!("known: {}", known.join(" ")))
    })
}

/// Where a kernel stands in the table.
pub(super) fn position(name: &str) -> usize {
    KERNELS.iter().position(|kernel| kernel.name == name).unwrap_or(KERNELS.len())
}

impl Kernel {
    /// The unpacked kernel, from the cache if it is there and `anew` is not asked for.
    pub(super) fn fetch(&self, anew: bool) -> Result<Unpacked> {
        let cache = cache()?;
        let dir = cache.join(self.name.replace('.', "_"));
        if let Ok(package) = fs::read_to_string(dir.join(".package"))
            && !anew
        {
            return Ok(Unpacked { dir, package: package.trim().to_owned() });
        }
        // Two checkouts may fetch at the same time: each in a folder of its own, the last one stays.
        let temporary = cache.join(format!("{}.{}", self.name.replace('.', "_"), std::process::id()));
        let package = self.unpack(&temporary).with_context(|| format!("cannot fetch kernel {}", self.name));
        let moved = package.and_then(|package| {
            let _ = fs::remove_dir_all(&dir);
            fs::rename(temporary.join("unpacked"), &dir).context("cannot move the kernel into the cache")?;
            Ok(Unpacked { dir, package })
        });
        let _ = fs::remove_dir_all(&temporary);
        moved
    }

    fn unpack(&self, temporary: &Path) -> Result<String> {
        let mut last = None;
        for suite in self.suites {
            eprintln!("vm-test: fetching kernel {} from {suite}", self.name);
            match self.unpack_from(suite, temporary) {
                Ok(package) => return Ok(package),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no suite has it")))
    }

    fn unpack_from(&self, suite: &str, temporary: &Path) -> Result<String> {
        let dir = temporary.join("apt");
        let archive = Archive::alone(suite, &archive_uri(suite.ends_with("-security"))?, &dir)?;
        let available = archive.run("apt-cache", &["dumpavail"])?;
        let names: BTreeSet<&str> =
            available.lines().filter_map(|line| line.strip_prefix("Package: ")).collect();
        let Some(version) = self.newest(&names) else { bail!("{suite} has no such kernel") };
        let packages: Vec<String> = ["image", "base", "binary", "modules"]
            .iter()
            .map(|part| format!("linux-{part}-{version}"))
            .filter(|package| names.contains(package.as_str()))
            .collect();
        let mut download = vec!["download"];
        download.extend(packages.iter().map(String::as_str));
        archive.run("apt-get", &download)?;
        let unpacked = temporary.join("unpacked");
        for entry in fs::read_dir(&dir).context("cannot list the packages")? {
            let path = entry.context("cannot list the packages")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                command::output(command::new("dpkg-deb").arg("-x").arg(&path).arg(&unpacked))?;
            }
        }
        let package = format!("linux-image-{version} from {suite}");
        fs::write(unpacked.join(".package"), &package).context("cannot write into the cache")?;
        Ok(package)
    }

    /// The highest version of this kernel among package names. The cloud flavour is small and has a serial
    /// console; since 7.0 the package with this name is empty and its content is in the three others.
    fn newest<'a>(&self, names: &BTreeSet<&'a str>) -> Option<&'a str> {
        let (start, middle) = self.version;
        names
            .iter()
            .filter_map(|name| name.strip_prefix("linux-image-"))
            .filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))
            .filter(|version| version.starts_with(start) && version.contains(middle))
            .filter(|version| version.ends_with("-cloud-amd64"))
            .max_by_key(|version| {
                let numbers = version.split(|c: char| !c.is_ascii_digit());
                numbers.map(|number| number.parse().unwrap_or_default()).collect::<Vec<u32>>()
            })
    }
}

fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let dir = base.unwrap_or_else(env::temp_dir).join("policy-agent/vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_number() {
        let names = BTreeSet::from([
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-60-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-cloud-amd64",
        ]);
        assert_eq!(named("6.1").unwrap().newest(&names), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(named("6.12").unwrap().newest(&names), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(named("5.10").unwrap().newest(&names), None);
    }
}
