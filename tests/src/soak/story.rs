//! What was found, as a scenario file that shows it: the truth is the evaluator's.

use super::compare::{Difference, Ends};
use crate::{
    backend::{Objects, deltas, new_world},
    net::Family,
    scenario::{Case, State},
};
use anyhow::{Context, Result};
use policy_engine::{oracle, verdict::Query, world::World};
use serde_json::{Value, json};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The scenario with the evaluator's verdict on the connection, under this id.
pub(super) fn story(document: &Value, id: &str, found: &Difference) -> Result<Value> {
    let mut out = document.clone();
    (out["schema"], out["id"]) = ("netpol-case/v1".into(), id.into());
    out["title"] = "found by comparing random worlds".into();
    out["notes"] = format!("step {}: {}", found.step, found.what).into();
    let ends = found.ends.filter(|ends| Family::of(ends.source) == Family::of(ends.destination));
    let port = ends.map_or_else(|| "TCP/80".to_owned(), |ends| ends.port.to_string());
    let silent = json!({"ports": [port], "default": "skip"});
    let steps = out["steps"].as_array_mut().context("a scenario has steps")?;
    steps.truncate(found.step + 1);
    for step in steps.iter_mut() {
        step["expect"] = silent.clone();
    }
    if let Some(ends) = ends {
        let (state, world) = after(document, found.step)?;
        let from = name(&mut out, &state, ends.source);
        let to = name(&mut out, &state, ends.destination);
        out["steps"][found.step]["expect"]["rules"] = json!([rule(&world, &ends, &from, &to)]);
    }
    Ok(out)
}

/// Writes it as YAML; the file's path.
pub(super) fn write(document: &Value, folder: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join(name).with_extension("yaml");
    let text = serde_norway::to_string(document)?;
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn after(document: &Value, step: usize) -> Result<(State, World)> {
    let case: Case = serde_json::from_value(document.clone())?;
    let mut state = State::new(&case)?;
    let (mut objects, mut world) = (Objects::default(), new_world());
    for actions in case.steps.iter().take(step + 1) {
        for action in &actions.actions {
            state.act(action)?;
        }
        for delta in deltas(&mut objects, &state) {
            world.apply(delta);
        }
    }
    Ok((state, world))
}

/// The place that has the address; a host outside is added where there is none.
fn name(out: &mut Value, state: &State, address: IpAddr) -> String {
    let places = state.places();
    if let Some(place) = places.iter().find(|place| place.ips.contains(&address)) {
        return place.name.clone();
    }
    let name = if address.is_ipv4() { "stranger4" } else { "stranger6" };
    out["cluster"]["external"][name] = json!({"ips": [address]});
    format!("ext:{name}")
}

fn rule(world: &World, ends: &Ends, from: &str, to: &str) -> Value {
    let family = Family::of(ends.source);
    let evaluation = oracle::verdicts(
        world,
        &Query {
            source: ends.source,
            destination: ends.destination,
            protocol: ends.port.transport.number(family),
            port: ends.port.number,
            from_node_process: from.starts_with("node:"),
        },
    );
    let word = |allow: bool| if allow { "allow" } else { "deny" };
    json!({
        "from": from, "to": to, "ports": [ends.port.to_string()],
        "family": if family == Family::V4 { "v4" } else { "v6" },
        "verdict": word(evaluation.allows()),
        "ingress": word(evaluation.ingress.allows()), "egress": word(evaluation.egress.allows()),
    })
}
