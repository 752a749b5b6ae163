//! `policyctl explain`: why a flow between two ends is allowed or denied by a directory of manifests.

use std::io::Write as _;
use std::net::IpAddr;

use policy_engine::model::ObjectKey;
use policy_engine::verdict::{Evaluation, Nearest, Query, RuleRef, Side};
use policy_engine::world::World;
use policy_engine::{explain, oracle};
use serde_json::{Value, json};

use crate::ctl::args::{ExplainArgs, TextForm};
use crate::ctl::failure::Failure;
use crate::ctl::offline::{self, End};
use crate::ctl::screen::Screen;
use crate::events::details::RuleText;

/// A flow to be judged.
struct Question {
    query: Query,
    /// The pod behind a Service that it reaches.
    backend: Option<String>,
}

impl Question {
    fn answer(&self, world: &World) -> Evaluation {
        let mut evaluation = oracle::evaluate(world, &self.query);
        if self.backend.is_some() {
            // What comes back to the pod that opens has left it all the same.
            let through = oracle::through_service(world, &self.query);
            let sides =
                [(&mut evaluation.egress, through.egress), (&mut evaluation.ingress, through.ingress)];
            sides.into_iter().for_each(|(side, judged)| {
                let nearest = side.nearest.take();
                *side = Side { nearest, ..judged };
            });
        }
        evaluation
    }
}

/// Runs the command. A pair of dual-stack pods is judged on each family, a Service for each pod that it leads to.
///
/// # Errors
/// When the manifests cannot be read, an end cannot be found, or the output cannot be written.
pub fn run(args: &ExplainArgs, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let world = offline::world(&args.manifests, screen)?;
    let from = offline::end(&world, &args.from)?;
    let (protocol, port) = args.port;
    let ends = match args.to.strip_prefix("svc/") {
        Some(service) => offline::backends(&world, service, protocol, port)?,
        None => vec![(offline::end(&world, &args.to)?, port)],
    };
    let is_service = args.to.starts_with("svc/");
    let mut questions = Vec::new();
    for (to, port) in &ends {
        questions.extend(pairs(&from, to).map(|(source, destination)| Question {
            query: Query {
                source,
                destination,
                protocol: protocol.number(),
                port: *port,
                from_node_process: false,
            },
            backend: is_service.then(|| to.name.clone()),
        }));
    }
    if questions.is_empty() {
        return Err(Failure::new(format!("{} and {} have no address family in common", from.name, args.to)));
    }
    let answers: Vec<_> = questions.iter().map(|q| (q, q.answer(&world))).collect();
    match args.output {
        TextForm::Json => {
            let flows: Vec<Value> =
                answers.iter().map(|(question, answer)| flow(&world, question, answer)).collect();
            let answer = json!({
                "from": from.name,
                "to": args.to,
                "port": port,
                "protocol": protocol.name(),
                "verdict": overall(&answers),
                "flows": flows,
            });
            writeln!(screen.out, "{answer}")?;
        }
        TextForm::Text => {
            if is_service {
                let (to, pods) = (&args.to, ends.len());
                writeln!(
                    screen.out,
                    "{to} port {port}/{protocol} leads to {pods} pod{}, each judged by itself: {}",
                    if pods == 1 { "" } else { "s" },
                    overall(&answers),
                )?;
            }
            text(&world, &answers, screen)?;
        }
    }
    Ok(())
}

/// One word for all flows.
fn overall(answers: &[(&Question, Evaluation)]) -> &'static str {
    let allowed = answers.iter().filter(|(_, evaluation)| evaluation.allows()).count();
    // A pair of pods is allowed if every family is; behind a Service the choice is kube-proxy's.
    let service = answers.iter().any(|(question, _)| question.backend.is_some());
    if service && allowed > 0 && allowed < answers.len() {
        "mixed"
    } else {
        verdict(allowed == answers.len())
    }
}

fn pairs<'a>(from: &'a End, to: &'a End) -> impl Iterator<Item = (IpAddr, IpAddr)> + 'a {
    from.addresses.iter().flat_map(|source| {
        to.addresses
            .iter()
            .filter(|destination| source.is_ipv4() == destination.is_ipv4())
            .map(|destination| (*source, *destination))
    })
}

fn text(world: &World, answers: &[(&Question, Evaluation)], screen: &mut Screen<'_>) -> Result<(), Failure> {
    for (question, evaluation) in answers {
        let mut text = String::new();
        explain::text(&mut text, world, &question.query, evaluation).map_err(anyhow::Error::from)?;
        write!(screen.out, "{text}")?;
    }
    Ok(())
}

fn verdict(allows: bool) -> &'static str {
    if allows { "allow" } else { "deny" }
}

fn flow(world: &World, question: &Question, evaluation: &Evaluation) -> Value {
    let Question { query, backend } = question;
    let mut flow = json!({
        "source": query.source,
        "destination": query.destination,
        "verdict": verdict(evaluation.allows()),
        "egress": side(world, &evaluation.egress),
        "ingress": side(world, &evaluation.ingress),
    });
    if let Some(backend) = backend {
        flow["backend"] = json!({ "pod": backend, "port": query.port });
    }
    flow
}

fn side(world: &World, side: &Side) -> Value {
    let Side { reason, pod, isolated_by, cluster_policies, passed_by, allowed_by, denied_by, nearest } = side;
    let keys = |keys: &[ObjectKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let rule = |found: &RuleRef| rule(world, found);
    json!({
        "verdict": verdict(reason.passes()),
        "reason": reason.name(),
        "pod": pod.as_ref().map(ToString::to_string),
        "isolated_by": keys(isolated_by),
        "cluster_policies": keys(cluster_policies),
        "passed_by": passed_by.as_ref().map(rule),
        "allowed_by": allowed_by.as_ref().map(rule),
        "denied_by": denied_by.as_ref().map(rule),
        "nearest_rule": nearest.as_ref().map(|nearest| nearest_rule(world, nearest)),
    })
}

fn rule(world: &World, rule: &RuleRef) -> Value {
    let RuleText { policy, direction, index, tier, priority, name } = RuleText::new(world, rule);
    let mut value = json!({ "policy": policy, "direction": direction, "index": index });
    if !tier.is_empty() {
        (value["tier"], value["priority"], value["name"]) = (tier.into(), priority.into(), name.into());
    }
    value
}

fn nearest_rule(world: &World, nearest: &Nearest) -> Value {
    let mut value = rule(world, &nearest.rule);
    value["field"] = nearest.field.name().into();
    value["wanted"] = nearest.wanted.clone().into();
    value["got"] = nearest.got.clone().into();
    value
}
