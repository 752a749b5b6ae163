//! The Helm chart and the kustomize base give the same objects, and every overlay can be rendered.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use policy_tests::{
    cluster::{program, version},
    scenario,
};
use serde::Deserialize;
use serde_json::Value;

type Objects = BTreeMap<(String, String), Value>;

/// Compares both renderings, field by field.
pub(crate) fn alike() -> Result<()> {
    let deploy = scenario::root().join("deploy");
    let kustomize =
        |folder: &str| objects(Command::new(program("kubectl")?).arg("kustomize").arg(deploy.join(folder)));
    let helm = |more: &[&str]| {
        let mut helm = Command::new(program("helm")?);
        helm.args(["template", "policy-agent", "--namespace", "policy-agent"])
            .args(["--kube-version", version()]);
        objects(helm.arg(deploy.join("helm/policy-agent")).args(["--set", "createNamespace=true"]).args(more))
    };
    let base = kustomize("base")?;
    same(&base, &helm(&[])?)?;
    same(&kustomize("overlays/kind")?, &helm(&["--set", "image.pullPolicy=Never"])?)?;
    same(&kustomize("overlays/old-kernels")?, &helm(&["--set", "extraCapabilities={SYS_RESOURCE}"])?)?;
    same(&kustomize("overlays/services")?, &helm(&["--set", "services=auto"])?)?;
    same(&kustomize("overlays/cgroup")?, &helm(&["--set", "unhookable=cgroup"])?)?;
    ensure!(
        helm(&["--set", "metrics.podMonitor=true,priorityQuota=true"])?.len() == base.len() + 2,
        "two more"
    );
    for overlay in ["kubeadm", "read-only-hosts"] {
        kustomize(&format!("overlays/{overlay}"))?;
    }
    Ok(())
}

fn same(ours: &Objects, theirs: &Objects) -> Result<()> {
    ensure!(ours.keys().eq(theirs.keys()), "objects differ:\n{:?}\n{:?}", ours.keys(), theirs.keys());
    for (key, object) in ours {
        ensure!(object == &theirs[key], "{key:?} differs:\n{object:#}\n{:#}", theirs[key]);
    }
    Ok(())
}

/// The objects that a command prints, by kind and name.
fn objects(command: &mut Command) -> Result<Objects> {
    let output = command.output().context("render")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("not UTF-8")?;
    let mut objects = Objects::new();
    for document in serde_norway::Deserializer::from_str(&text) {
        let object = Value::deserialize(document).context("no YAML")?;
        if object.is_null() {
            continue;
        }
        let field = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let key = (field("/kind").context("no kind")?, field("/metadata/name").context("no name")?);
        ensure!(objects.insert(key.clone(), object).is_none(), "{key:?} twice");
    }
    Ok(objects)
}
