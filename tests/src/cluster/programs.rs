//! Where the programs of Kubernetes are: `cargo xtask setup` puts them into a cache outside the work tree.

use anyhow::{Result, ensure};
use std::{env, path::PathBuf};

/// The Kubernetes version that the product is tested with.
pub fn version() -> &'static str {
    include_str!("../../../deploy/kubernetes-version").trim_ascii()
}

/// A program of that version, such as `kube-apiserver` or `cni/ptp`.
///
/// # Errors
/// It is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = folder().join(name);
    let set = if matches!(name, "etcd" | "etcd-current" | "kube-apiserver") { "--kube" } else { "--cluster" };
    ensure!(path.is_file(), "{} is missing\nhint: cargo xtask setup {set}", path.display());
    Ok(path)
}

/// The folder of the programs.
pub(super) fn folder() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.unwrap_or_else(env::temp_dir).join("policy-agent/kube").join(version()).join("bin")
}
