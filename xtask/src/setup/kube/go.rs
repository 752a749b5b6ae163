//! Programs of the Kubernetes module, compiled here: `go install` refuses it, as it replaces its parts by local paths.

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{From, Program, place, version};
use crate::command;

const MODULE: &str = "k8s.io/kubernetes";
/// Progress is told each time that so many packages are compiled.
const STEP: usize = 200;

/// Compiles those of these programs that come from the module.
pub(super) fn build(dir: &Path, programs: &[&Program]) -> Result<()> {
    if programs.iter().all(|program| matches!(program.from, From::Debian(..))) {
        return Ok(());
    }
    let work = dir.join("src");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let module = prepare(&work)?;
    for program in programs {
        let made = work.join(program.name);
        match program.from {
            From::Kubernetes(path) => compile(&work, program.name, path)?,
            From::Required(package) => {
                eprintln!("setup: compiling {}", program.name);
                let mut go = go(&work);
                go.args(["build", "-v", "-ldflags", "-s -w", "-o", program.name, package]);
                watched(go)?;
            }
            From::Module(path) => {
                eprintln!("setup: compiling {}", program.name);
                // Such a module has no replacements of its own, so it is installed as it was published.
                let mut go = go(&work);
                go.env("GOBIN", &work).env_remove("GOFLAGS").args(["install", "-v", path]);
                watched(go)?;
            }
            From::C(path) => {
                let mut gcc = command::new("gcc");
                gcc.args(["-O2", "-static", "-DVERSION=policy", "-o"]).arg(&made);
                command::output(gcc.arg(Path::new(&module).join(path)))?;
            }
            From::Debian(..) => continue,
        }
        place(&made, dir, program.name)?;
    }
    Ok(())
}

/// Writes a module of our own that repeats the replacements, with published versions; returns where the sources are.
fn prepare(work: &Path) -> Result<String> {
    let full = format!("{MODULE}@v{}", version());
    // Outside a module the download is not bound to one's requirements.
    fs::write(work.join("go.mod"), "module tools\n").context("cannot write go.mod")?;
    eprintln!("setup: fetching {full}");
    let told = command::output(go(work).args(["mod", "download", "-json", &full]))?;
    let field = |name: &str| {
        let start = format!("\"{name}\": \"");
        let line = told.lines().find_map(|line| line.trim().strip_prefix(&start))?;
        Some(line.trim_end_matches(',').trim_end_matches('"').to_owned())
    };
    let (Some(mods), Some(sources)) = (field("GoMod"), field("Dir")) else {
        bail!("`go mod download` does not say where {full} is: {told}");
    };
    let theirs = fs::read_to_string(&mods).with_context(|| format!("cannot read {mods}"))?;
    fs::write(work.join("go.mod"), go_mod(&theirs)).context("cannot write go.mod")?;
    Ok(sources)
}

/// `./staging/src/k8s.io/api` of Kubernetes 1.N.P is published as `k8s.io/api` 0.N.P.
fn go_mod(theirs: &str) -> String {
    let go = theirs.lines().find(|line| line.starts_with("go ")).unwrap_or("go 1.26.0");
    let published = version().split_once('.').map_or("", |(_, rest)| rest);
    let mut text = format!("module tools\n\n{go}\n\nrequire {MODULE} v{}\n\nreplace (\n", version());
    for line in theirs.lines() {
        let mut words = line.split_whitespace().filter(|word| *word != "replace");
        if let (Some(name), Some("=>")) = (words.next(), words.next()) {
            let _ = writeln!(text, "\t{name} => {name} v0.{published}");
        }
    }
    text.push_str(")\n");
    text
}

fn compile(work: &Path, name: &str, path: &str) -> Result<()> {
    eprintln!("setup: compiling {name}");
    let mut parts = version().split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let own = "k8s.io/component-base/version";
    // Without these the programs call themselves v0.0.0, over which clients that read the version trip.
    let flags = format!(
        "-s -w -X {own}.gitVersion=v{} -X {own}.gitMajor={major} -X {own}.gitMinor={minor}",
        version()
    );
    let mut go = go(work);
    go.args(["build", "-v", "-ldflags", &flags, "-o", name, &format!("{MODULE}/{path}")]);
    if path.starts_with("test/") {
        // It runs in an image that has no libraries.
        go.env("CGO_ENABLED", "0");
    }
    watched(go)
}

/// Runs `go build -v`, which names each package on stderr, and tells how many there were.
fn watched(mut go: Command) -> Result<()> {
    let mut child =
        go.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot run {}", command::shown(&go)))?;
    let (mut compiled, mut said) = (0, Vec::new());
    for line in BufReader::new(child.stderr.take().context("go has no stderr")?).lines() {
        let line = line.context("cannot read what go says")?;
        let package = !line.contains(' ') && line.contains('/');
        compiled += usize::from(package);
        if package && compiled % STEP == 0 {
            eprintln!("setup: {compiled} packages compiled");
        }
        if !package && !line.starts_with("go: downloading") {
            said.push(line);
        }
    }
    let status = child.wait().context("cannot wait for go")?;
    if !status.success() {
        bail!("{} failed ({status}):\n{}", command::shown(&go), said.join("\n"));
    }
    Ok(())
}

fn go(work: &Path) -> Command {
    let mut go = command::new("go");
    go.current_dir(work).env("GOFLAGS", "-mod=mod");
    go
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_become_published_versions() {
        let theirs = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n\tx v1\n)\n\nreplace (\n\
                      \tk8s.io/api => ./staging/src/k8s.io/api\n)\n\nreplace k8s.io/x => ./staging/src/k8s.io/x\n";
        let ours = go_mod(theirs);
        let published = version().split_once('.').unwrap().1;
        assert!(ours.contains(&format!("\tk8s.io/api => k8s.io/api v0.{published}\n")), "{ours}");
        assert!(ours.contains(&format!("\tk8s.io/x => k8s.io/x v0.{published}\n")), "{ours}");
        assert!(ours.contains("\ngo 1.26.0\n") && ours.ends_with(")\n"), "{ours}");
        assert!(!ours.contains("staging"), "{ours}");
    }
}
