//! A real Kubernetes for the suites: its programs, built or unpacked once into a cache outside the work tree.

mod debian;
mod go;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::image::{Content, Image};

use super::{Scope, apt, ensure, mend};

/// The Kubernetes version that the product is tested with, the one place where it stands.
const VERSION: &str = include_str!("../../../../deploy/kubernetes-version");
/// Raised when the same version is built in another way: what is in a cache is then made anew.
const RECIPE: &str = "recipe 1\n";

/// How much of Kubernetes a suite asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// etcd and kube-apiserver: about 6 minutes on 2 cores the first time.
    Api,
    /// Whole nodes, and Helm, too: about 5 minutes more.
    Cluster,
}

/// What a program is made from.
enum From {
    /// A package of the Kubernetes module, by its path inside it.
    Kubernetes(&'static str),
    /// A program of another module, by its path and version.
    Module(&'static str),
    /// A program of a module that Kubernetes names among its requirements, by its path, in the version named there.
    Required(&'static str),
    /// A C source of the Kubernetes module.
    C(&'static str),
    /// A Debian package and the path inside it; it is unpacked, never installed: no service is started.
    Debian(&'static str, &'static str),
}

/// A program of a set.
struct Program {
    name: &'static str,
    set: Set,
    from: From,
}

const fn kubernetes(name: &'static str, set: Set, path: &'static str) -> Program {
    Program { name, set, from: From::Kubernetes(path) }
}

const fn debian(name: &'static str, set: Set, package: &'static str, path: &'static str) -> Program {
    Program { name, set, from: From::Debian(package, path) }
}

const CNI: &str = "containernetworking-plugins";

const PROGRAMS: &[Program] = &[
    debian("etcd", Set::Api, "etcd-server", "usr/bin/etcd"),
    kubernetes("kube-apiserver", Set::Api, "cmd/kube-apiserver"),
    // Debian's is old: with it an API server streams no lists. Both are met in clusters.
    Program { name: "etcd-current", set: Set::Api, from: From::Required("go.etcd.io/etcd/server/v3") },
    kubernetes("kubectl", Set::Cluster, "cmd/kubectl"),
    kubernetes("kube-controller-manager", Set::Cluster, "cmd/kube-controller-manager"),
    kubernetes("kube-scheduler", Set::Cluster, "cmd/kube-scheduler"),
    kubernetes("kubelet", Set::Cluster, "cmd/kubelet"),
    kubernetes("kube-proxy", Set::Cluster, "cmd/kube-proxy"),
    kubernetes("agnhost", Set::Cluster, "test/images/agnhost"),
    Program { name: "pause", set: Set::Cluster, from: From::C("build/pause/linux/pause.c") },
    Program { name: "helm", set: Set::Cluster, from: From::Module("helm.sh/helm/v3/cmd/helm@v3.19.0") },
    debian("containerd", Set::Cluster, "containerd", "usr/bin/containerd"),
    debian("containerd-shim-runc-v2", Set::Cluster, "containerd", "usr/bin/containerd-shim-runc-v2"),
    debian("ctr", Set::Cluster, "containerd", "usr/bin/ctr"),
    debian("runc", Set::Cluster, "runc", "usr/sbin/runc"),
    debian("cni/bridge", Set::Cluster, CNI, "usr/lib/cni/bridge"),
    debian("cni/host-local", Set::Cluster, CNI, "usr/lib/cni/host-local"),
    debian("cni/loopback", Set::Cluster, CNI, "usr/lib/cni/loopback"),
    debian("cni/portmap", Set::Cluster, CNI, "usr/lib/cni/portmap"),
    debian("cni/ptp", Set::Cluster, CNI, "usr/lib/cni/ptp"),
];

/// The version without the line's end.
pub(crate) fn version() -> &'static str {
    VERSION.trim_ascii()
}

/// Makes sure that the programs of a set are in the cache. Says nothing when they are.
///
/// # Errors
/// What is missing for it, with the command that brings it, or the command that failed.
pub(crate) fn provide(set: Set) -> Result<()> {
    let dir = cache()?;
    let stamp = dir.join(match set {
        Set::Api => ".api",
        Set::Cluster => ".cluster",
    });
    if set == Set::Cluster {
        ensure(Scope::Cluster)?;
    }
    let wanted = || PROGRAMS.iter().filter(|program| set == Set::Cluster || program.set == Set::Api);
    let bin = dir.join("bin");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == RECIPE)
        && wanted().all(|program| bin.join(program.name).is_file())
    {
        return Ok(());
    }
    ensure(Scope::Api)?;
    fs::create_dir_all(bin.join("cni")).with_context(|| format!("cannot make {}", bin.display()))?;
    // Another checkout may be building the same: it is waited for, and what it made is used.
    let lock = File::create(dir.join(".lock")).context("cannot make a lock in the cache")?;
    if lock.try_lock().is_err() {
        eprintln!("setup: another process fills {}, waiting for it", dir.display());
        lock.lock().context("cannot take the lock of the cache")?;
    }
    // An older recipe made what is there: all of it is made anew.
    let old = fs::read_to_string(&stamp).is_ok_and(|text| text != RECIPE);
    let missing: Vec<&Program> =
        wanted().filter(|program| old || !bin.join(program.name).is_file()).collect();
    eprintln!(
        "setup: bringing Kubernetes {} ({} programs, kept in {})",
        version(),
        missing.len(),
        dir.display()
    );
    debian::unpack(&dir, &missing)?;
    go::build(&dir, &missing)?;
    if set == Set::Cluster {
        images(&dir)?;
    }
    fs::write(&stamp, RECIPE).context("cannot write into the cache")?;
    eprintln!("setup: Kubernetes {} is complete", version());
    Ok(())
}

/// Images of the programs that run in pods, named after them.
fn images(dir: &Path) -> Result<()> {
    let folder = dir.join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (program, name) in
        [("pause", "policy-agent.local/pause:dev"), ("agnhost", "policy-agent.local/agnhost:dev")]
    {
        let bytes =
            fs::read(dir.join("bin").join(program)).with_context(|| format!("cannot read {program}"))?;
        let contents = vec![
            Content::folder("tmp", 0o1777),
            Content::folder("etc", 0o755),
            Content::file(program, bytes),
        ];
        let image = Image { name, entrypoint: &format!("/{program}"), contents };
        let file = folder.join(format!("{program}.tar"));
        fs::write(&file, image.archive()?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Where everything of this version is kept.
fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let dir = base.unwrap_or_else(env::temp_dir).join("policy-agent/kube").join(version());
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Moves a finished program to its place in one step: a half-written one is never taken for whole.
fn place(made: &Path, dir: &Path, name: &str) -> Result<()> {
    let to = dir.join("bin").join(name);
    fs::rename(made, &to).with_context(|| format!("cannot move a program to {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_three_numbers() {
        let numbers: Vec<_> = version().split('.').map(str::parse::<u32>).collect();
        assert_eq!(numbers.len(), 3, "{}", version());
        assert!(numbers.iter().all(Result::is_ok), "{}", version());
    }

    #[test]
    fn names_are_unique() {
        for (i, program) in PROGRAMS.iter().enumerate() {
            assert!(PROGRAMS[..i].iter().all(|other| other.name != program.name), "{}", program.name);
        }
    }
}
