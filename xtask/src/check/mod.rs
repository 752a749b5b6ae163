//! `check`: the design rules that a compiler does not know.

mod dependencies;
mod files;
mod links;

use std::{collections::BTreeSet, fmt, fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{command, fail};

/// A rule that is broken somewhere.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    what: String,
    hint: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, hint } = self;
        write!(f, "{file}:{line}: {what}\n  hint: {hint}")
    }
}

/// A file of the repository, by its path from the root.
struct Source {
    path: String,
    text: String,
}

/// `cargo xtask check`
pub(crate) fn task(args: &[String]) -> Result<()> {
    if let Some(other) = args.first() {
        return Err(fail::argument("check", other));
    }
    let tracked = tracked()?;
    let sources = read(&tracked)?;
    let mut findings = dependencies::check()?;
    for source in &sources {
        findings.extend(files::check(source));
    }
    findings.extend(links::check(&sources, &tracked));
    for finding in &findings {
        println!("{finding}");
    }
    println!("check: {} files, {} broken rules", sources.len(), findings.len());
    if findings.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("design rules are broken")) }
}

/// Everything that git knows or would add, so that a new file is checked before its first commit.
fn tracked() -> Result<BTreeSet<String>> {
    let mut git = command::new("git");
    let list = command::output(git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let root = command::root();
    Ok(list
        .split('\0')
        .filter(|path| !path.is_empty() && root.join(path).is_file())
        .map(str::to_owned)
        .collect())
}

fn read(paths: &BTreeSet<String>) -> Result<Vec<Source>> {
    let root: PathBuf = command::root();
    let mut sources = Vec::new();
    for path in paths {
        let bytes = fs::read(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        // What is not text (a picture, a captured packet) has no lines to check.
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.clone(), text });
        }
    }
    Ok(sources)
}
