//! `policyctl explain`: why a flow between two ends is allowed or denied by a directory of manifests.

use std::io::Write as _;
use std::net::IpAddr;

use policy_engine::verdict::{Evaluation, Nearest, Query, RuleRef, Side};
use policy_engine::world::World;
use policy_engine::{explain, oracle};
use serde_json::{Value, json};

use crate::ctl::args::{ExplainArgs, TextForm};
use crate::ctl::failure::Failure;
use crate::ctl::offline::{self, End};
use crate::ctl::screen::Screen;

/// Runs the command. A pair of dual-stack pods is judged on each family.
///
/// # Errors
/// When the manifests cannot be read, an end cannot be found, or the output cannot be written.
pub fn run(args: &ExplainArgs, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let world = offline::world(&args.manifests, screen)?;
    let (from, to) = (offline::end(&world, &args.from)?, offline::end(&world, &args.to)?);
    let (protocol, port) = args.port;
    let questions: Vec<Query> = pairs(&from, &to)
        .map(|(source, destination)| Query {
            source,
            destination,
            protocol: protocol.number(),
            port,
            from_node_process: false,
        })
        .collect();
    if questions.is_empty() {
        return Err(Failure::new(format!("{} and {} have no address family in common", from.name, to.name)));
    }
    let answers: Vec<_> = questions.iter().map(|query| (query, oracle::evaluate(&world, query))).collect();
    match args.output {
        TextForm::Json => {
            let allowed = answers.iter().all(|(_, evaluation)| evaluation.allows());
            let flows: Vec<Value> =
                answers.iter().map(|(query, evaluation)| flow(query, evaluation)).collect();
            let answer = json!({
                "from": from.name,
                "to": to.name,
                "port": port,
                "protocol": protocol.name(),
                "verdict": verdict(allowed),
                "flows": flows,
            });
            writeln!(screen.out, "{answer}")?;
        }
        TextForm::Text => text(&world, &answers, screen)?,
    }
    Ok(())
}

fn pairs<'a>(from: &'a End, to: &'a End) -> impl Iterator<Item = (IpAddr, IpAddr)> + 'a {
    from.addresses.iter().flat_map(|source| {
        to.addresses
            .iter()
            .filter(|destination| source.is_ipv4() == destination.is_ipv4())
            .map(|destination| (*source, *destination))
    })
}

fn text(world: &World, answers: &[(&Query, Evaluation)], screen: &mut Screen<'_>) -> Result<(), Failure> {
    for (query, evaluation) in answers {
        let mut text = String::new();
        explain::text(&mut text, world, query, evaluation).map_err(anyhow::Error::from)?;
        write!(screen.out, "{text}")?;
    }
    Ok(())
}

fn verdict(allows: bool) -> &'static str {
    if allows { "allow" } else { "deny" }
}

fn flow(query: &Query, evaluation: &Evaluation) -> Value {
    json!({
        "source": query.source,
        "destination": query.destination,
        "verdict": verdict(evaluation.allows()),
        "egress": side(&evaluation.egress),
        "ingress": side(&evaluation.ingress),
    })
}

fn side(side: &Side) -> Value {
    let Side { reason, pod, isolated_by, allowed_by, nearest } = side;
    json!({
        "verdict": verdict(reason.passes()),
        "reason": reason.name(),
        "pod": pod.as_ref().map(ToString::to_string),
        "isolated_by": isolated_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "allowed_by": allowed_by.as_ref().map(rule),
        "nearest_rule": nearest.as_ref().map(nearest_rule),
    })
}

fn rule(rule: &RuleRef) -> Value {
    json!({ "policy": rule.policy.to_string(), "direction": rule.direction.name(), "index": rule.index })
}

fn nearest_rule(nearest: &Nearest) -> Value {
    let mut value = rule(&nearest.rule);
    value["field"] = nearest.field.name().into();
    value["wanted"] = nearest.wanted.clone().into();
    value["got"] = nearest.got.clone().into();
    value
}
