//! Asking apt, and suites that the machine's own sources lack, in a state of their own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{command, fail};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// `apt-get` that asks nothing and waits for another one to finish.
pub(super) fn get() -> Command {
    let mut apt = command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}

/// The version of a package that apt would install now.
pub(super) fn candidate(package: &str) -> Option<String> {
    let policy = command::output(command::new("apt-cache").args(["policy", package])).ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Whether a package is installed.
pub(super) fn installed(package: &str) -> bool {
    let status = command::output(command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
    status.is_ok_and(|status| status.ends_with(" installed"))
}

/// Whether this is Debian, whose backports have what a stable release lacks.
pub(super) fn is_debian() -> bool {
    os_release("ID=").is_some_and(|id| id == "debian")
}

/// The release's name, such as "bookworm".
pub(super) fn release() -> Option<String> {
    os_release("VERSION_CODENAME=")
}

/// Where this machine's apt gets Debian's packages from: the security archive or the main one.
pub(crate) fn archive_uri(security: bool) -> Result<String> {
    let format = "$(RELEASE) $(REPO_URI)";
    let list = ["indextargets", "--no-release-info", "--format", format, "Created-By: Packages"];
    let targets = command::output(command::new("apt-get").args(list))?;
    let found = targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(suite, uri)| suite.ends_with("-security") == security && uri.contains("debian"));
    found.map(|(_, uri)| uri.to_owned()).ok_or_else(|| {
        fail::hint(
            "apt knows no Debian archive",
            "add Debian's archive to apt's sources (only to fetch kernels)",
        )
    })
}

/// A suite with lists and cache of its own; the machine's apt is left as it is.
pub(crate) struct Archive {
    dir: PathBuf,
    own_sources: bool,
}

impl Archive {
    /// Only this suite, read anew, in a folder that is removed in the end.
    pub(crate) fn alone(suite: &str, uri: &str, dir: &Path) -> Result<Self> {
        Self::open(&format!("deb [signed-by={KEYRING}] {uri} {suite} main\n"), dir, true)
    }

    /// This suite of the main archive beside the machine's own sources.
    pub(super) fn with_machine_sources(suite: &str) -> Result<Self> {
        let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        let line = format!("deb [signed-by={KEYRING}] {} {suite} main\n", archive_uri(false)?);
        let dir = env::temp_dir().join(format!("policy-agent-apt-{}", std::process::id()));
        Self::open(&format!("{own}\n{line}"), &dir, false)
    }

    /// Runs an apt tool in this state.
    pub(crate) fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut apt = command::new(tool);
        apt.current_dir(&self.dir).env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        let mut option = |key: &str, value: &str| {
            apt.arg("-o").arg(format!("{key}={value}"));
        };
        option("Dir::Etc::sourcelist", &path("list"));
        option("Dir::State::Lists", &path("lists"));
        option("Dir::Cache", &path("cache"));
        if self.own_sources {
            option("Dir::Etc::sourceparts", &path("parts"));
        }
        option("APT::Sandbox::User", "root");
        option("Acquire::Languages", "none");
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        option("DPkg::Lock::Timeout", "300");
        command::output(apt.args(args))
    }

    /// Installs a package of this suite.
    pub(super) fn install(&self, package: &str) -> Result<()> {
        // "-t", not "package/suite": what it depends on must come from the same suite.
        let suite = format!("{}-backports", release().unwrap_or_default());
        self.run("apt-get", &["install", "-y", "--no-install-recommends", "-t", &suite, package]).map(|_| ())
    }

    fn open(sources: &str, dir: &Path, own_sources: bool) -> Result<Self> {
        let archive = Self { dir: dir.to_path_buf(), own_sources };
        for folder in ["lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(dir.join("list"), sources).with_context(|| format!("cannot write to {}", dir.display()))?;
        archive.run("apt-get", &["update"])?;
        Ok(archive)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // A folder of temporary files that stays is a nuisance, not an error.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_matches('"').to_owned())
}
