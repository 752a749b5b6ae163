//! `cluster up|down`: whole Kubernetes nodes on this machine. `cargo xtask cluster` builds what it needs first.

use anyhow::{Result, bail};
use policy_tests::cluster::{Cluster, Cni, Proxy, Shape, deploy};
use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let mut words = arguments.iter().map(String::as_str);
    match words.next() {
        Some("up") => up(words),
        Some("down") => Cluster::down(),
        _ => bail!(
            "usage: cluster up [--nodes 1|2] [--cni ptp|bridge] [--proxy iptables|nftables] [--dual-stack] [IMAGE]\n       cluster down"
        ),
    }
}

fn up<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<()> {
    let (mut shape, mut image) = (Shape::default(), None);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| anyhow::anyhow!("{word} needs a value"));
        match word {
            "--nodes" => shape.nodes = value()?.parse()?,
            "--cni" => {
                shape.cni = match value()? {
                    "ptp" => Cni::Ptp,
                    "bridge" => Cni::Bridge,
                    other => bail!("--cni {other}: ptp or bridge"),
                }
            }
            "--proxy" => {
                shape.proxy = match value()? {
                    "iptables" => Proxy::Iptables,
                    "nftables" => Proxy::Nftables,
                    other => bail!("--proxy {other}: iptables or nftables"),
                }
            }
            "--dual-stack" => shape.dual_stack = true,
            path if !path.starts_with('-') && image.is_none() => image = Some(path),
            other => bail!("unknown argument '{other}'"),
        }
    }
    let cluster = Cluster::up(shape)?;
    eprintln!("cluster: {} of {} nodes ready", cluster.nodes().len(), shape.nodes);
    if let Some(image) = image {
        cluster.load_image(Path::new(image))?;
        deploy::apply(&cluster)?;
        eprintln!("cluster: policy-agent is ready on every node");
    }
    let kubectl = cluster.kubectl_command()?;
    let words: Vec<_> = std::iter::once(kubectl.get_program()).chain(kubectl.get_args()).collect();
    println!("{}", words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "));
    Ok(())
}
