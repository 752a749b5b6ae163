//! `cluster`: whole Kubernetes nodes with the agent on them, by a program of the tests' crate.

use anyhow::Result;

use crate::{build, command, fail, image, setup, setup::kube, tally::Tally, test};

/// `cargo xtask cluster up|down|test`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let Some((verb, rest)) = args.split_first() else {
        return Err(fail::hint(
            "what about the cluster?",
            "cargo xtask cluster up\ncargo xtask cluster test\ncargo xtask cluster down",
        ));
    };
    if !command::is_root() {
        let hint = format!("sudo -E env \"PATH=$PATH\" cargo xtask cluster {verb}");
        return Err(fail::hint("nodes are made of namespaces and mounts: they need root", hint));
    }
    match verb.as_str() {
        "up" => up(rest),
        "test" => test::close(&suite(rest)?),
        "down" => {
            if let Some(other) = rest.first() {
                return Err(fail::argument("cluster down", other));
            }
            build::binaries(false)?;
            program(&["down".to_owned()])?;
            eprintln!("cluster: nothing is left");
            Ok(())
        }
        other => Err(fail::argument("cluster", other)),
    }
}

/// Everything is built before anything is started.
fn up(args: &[String]) -> Result<()> {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let (bare, release) = (has("--no-agent"), !has("--debug"));
    let mut words = vec!["up".to_owned()];
    words.extend(args.iter().filter(|arg| !matches!(arg.as_str(), "--no-agent" | "--debug")).cloned());
    kube::provide(kube::Set::Cluster)?;
    setup::ensure(setup::Scope::Test)?;
    if !bare {
        setup::ensure(setup::Scope::Image)?;
        words.push(image::make(release)?.display().to_string());
    }
    build::binaries(false)?;
    eprintln!("cluster: starting the nodes");
    program(&words)
}

/// The suite on whole nodes: `[WORD] [--debug]`.
pub(crate) fn suite(args: &[String]) -> Result<Tally> {
    let (mut word, mut release) = (None, true);
    for arg in args {
        match arg.as_str() {
            "--debug" => release = false,
            flag if flag.starts_with('-') => return Err(fail::argument("cluster test", flag)),
            name if word.is_none() => word = Some(name),
            other => return Err(fail::argument("cluster test", other)),
        }
    }
    kube::provide(kube::Set::Cluster)?;
    setup::ensure(setup::Scope::Test)?;
    setup::ensure(setup::Scope::Image)?;
    let archive = image::make(release)?;
    let mut cargo = command::workspace("test");
    cargo.args(["--test", "cluster", "--"]).args(word).env("POLICY_CLUSTER_IMAGE", archive);
    cargo.env("RUST_BACKTRACE", "1").env("CARGO_TERM_COLOR", "never");
    test::stream(cargo)
}

fn program(words: &[String]) -> Result<()> {
    command::run(command::new(&command::built("cluster").to_string_lossy()).args(words))
}
