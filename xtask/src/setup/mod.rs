//! `setup`: what building, testing, measuring and VM runs need; found, installed, or named.

mod apt;
pub(crate) mod kube;
mod linker;
mod machine;
mod mend;
pub(crate) mod toolchain;

pub(crate) use apt::{Archive, archive_uri};
use std::fmt::Write;

use anyhow::Result;

use crate::{command, fail};

/// What a task is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Compile everything, the kernel object too.
    Build,
    /// Run the suites on this machine's kernel.
    Test,
    /// Compare with other packet filters.
    Bench,
    /// Compile, and run suites on other kernels.
    Vm,
    /// Compile everything into programs that need no library.
    Image,
    /// Fetch and compile etcd and kube-apiserver.
    Api,
    /// Fetch and compile whole Kubernetes nodes, and run them.
    Cluster,
}

/// Something that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What, as a user would say it.
    what: String,
    /// What it is needed for.
    why: &'static str,
    /// What brings it.
    mend: Mend,
}

/// How something missing is brought.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mend {
    /// Debian packages.
    Packages(Vec<String>),
    /// A package from the backports of this machine's release.
    Backport(&'static str),
    /// Shell commands, in this order.
    Commands(Vec<String>),
    /// A command that mounts a file system.
    Mount(&'static str),
    /// Only the user can: a sentence.
    ByHand(String),
}

/// `cargo xtask setup [--bench] [--vm] [--kube] [--cluster]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let (mut scopes, mut kubernetes) = (vec![Scope::Test], None);
    for arg in args {
        match arg.as_str() {
            "--bench" => scopes.push(Scope::Bench),
            "--vm" => scopes.push(Scope::Vm),
            "--kube" => kubernetes = kubernetes.or(Some(kube::Set::Api)),
            "--cluster" => kubernetes = Some(kube::Set::Cluster),
            other => return Err(fail::argument("setup", other)),
        }
    }
    for scope in scopes {
        ensure(scope)?;
    }
    if let Some(set) = kubernetes {
        kube::provide(set)?;
    }
    let chosen = toolchain::choose()?;
    eprintln!("setup: nothing is missing; the kernel object is built by toolchain '{}'", chosen.name);
    Ok(())
}

/// Makes sure that everything of a scope is there. Says nothing when it is.
///
/// # Errors
/// Names what is missing and the commands that bring it, when it could not be installed.
pub(crate) fn ensure(scope: Scope) -> Result<()> {
    let mut missing = look(scope);
    if !missing.is_empty() && mend::able() {
        if missing.iter().any(|one| !matches!(one.mend, Mend::Mount(_))) {
            // Whether a package can be had is known only with the lists.
            mend::refresh();
            missing = look(scope);
        }
        // Some things are known only after others came: the linker must fit the compiler.
        while !missing.is_empty() {
            for one in &missing {
                eprintln!("setup: {} is missing ({})", one.what, one.why);
            }
            mend::all(&missing)?;
            let still = look(scope);
            if still == missing {
                break;
            }
            missing = still;
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(report(&missing)) }
}

fn look(scope: Scope) -> Vec<Missing> {
    let mut missing = machine::missing(scope);
    if matches!(scope, Scope::Api | Scope::Cluster) {
        // Nothing of Rust is compiled for these.
        return missing;
    }
    match toolchain::find() {
        Ok(chosen) => missing.extend(linker::missing(&chosen)),
        Err(one) => missing.push(one),
    }
    missing
}

fn report(missing: &[Missing]) -> anyhow::Error {
    let mut text = String::from("this machine lacks something");
    let mut hints = String::new();
    for one in missing {
        let _ = write!(text, "\n  {}: {}", one.what, one.why);
        let _ = writeln!(hints, "{}", commands(&one.mend));
    }
    fail::hint(text, hints.trim_end())
}

/// The lines that a user types to mend it.
fn commands(mend: &Mend) -> String {
    let sudo = if command::is_root() { "" } else { "sudo " };
    match mend {
        Mend::Packages(names) => format!("{sudo}apt-get install --no-install-recommends {}", names.join(" ")),
        Mend::Backport(name) => {
            format!("{name} from the backports of this release; as root `cargo xtask setup --vm` does it")
        }
        Mend::Commands(lines) => lines.join("\n"),
        Mend::Mount(line) => format!("{sudo}{line}"),
        Mend::ByHand(sentence) => sentence.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_why_and_how() {
        let one = Missing {
            what: "the program 'ip'".to_owned(),
            why: "tests look at namespaces",
            mend: Mend::Packages(vec!["iproute2".to_owned()]),
        };
        let text = report(&[one]).to_string();
        assert!(text.contains("'ip'") && text.contains("namespaces"), "{text}");
        assert!(commands(&Mend::Packages(vec!["iproute2".to_owned()])).ends_with("iproute2"));
    }
}
