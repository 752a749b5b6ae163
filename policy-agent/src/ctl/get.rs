//! `policyctl get`: lists of what the agent holds.

use std::io::Write as _;
use std::path::Path;

use crate::api::json;
use crate::ctl::args::{Get, TableForm};
use crate::ctl::client;
use crate::ctl::failure::Failure;
use crate::ctl::screen::Screen;
use crate::proto::agent::{
    Endpoint, EndpointState, ListEndpointsRequest, ListEndpointsResponse, ListPoliciesRequest,
    ListPoliciesResponse, Policy,
};

/// Runs the command.
///
/// # Errors
/// When the agent cannot be reached or the output cannot be written.
pub async fn run(socket: &Path, what: &Get, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let mut client = client::agent(socket).await?;
    match what {
        Get::Policies(args) => {
            let answer = client.list_policies(ListPoliciesRequest {}).await?.into_inner();
            match args.output {
                TableForm::Json => {
                    writeln!(screen.out, "{}", json::full("policyagent.v1.ListPoliciesResponse", &answer)?)?;
                }
                TableForm::Table => policies(answer, screen)?,
            }
        }
        Get::Endpoints(args) => {
            let answer = client.list_endpoints(ListEndpointsRequest {}).await?.into_inner();
            match args.output {
                TableForm::Json => {
                    writeln!(screen.out, "{}", json::full("policyagent.v1.ListEndpointsResponse", &answer)?)?;
                }
                TableForm::Table => endpoints(answer, screen)?,
            }
        }
    }
    Ok(())
}

/// A state as a word.
#[must_use]
pub fn state_name(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Unspecified => "unknown",
        EndpointState::Enforced => "enforced",
        EndpointState::Pending => "pending",
        EndpointState::Unenforced => "UNENFORCED",
        EndpointState::Stale => "STALE",
    }
}

fn policies(answer: ListPoliciesResponse, screen: &mut Screen<'_>) -> Result<(), Failure> {
    if answer.policies.is_empty() {
        writeln!(screen.err, "no policies")?;
        return Ok(());
    }
    let rows: Vec<_> = answer.policies.into_iter().map(policy_row).collect();
    screen.table(
        &["NAMESPACE", "NAME", "TIER", "INGRESS", "EGRESS", "PODS", "LOCAL", "SELECTOR", "PROBLEMS"],
        &rows,
    )?;
    Ok(())
}

fn policy_row(policy: Policy) -> Vec<String> {
    let rules = |isolates: bool, count: u32| match (isolates, count) {
        (false, 0) => "-".to_owned(),
        (true, 0) => "deny all".to_owned(),
        (_, 1) => "1 rule".to_owned(),
        (_, count) => format!("{count} rules"),
    };
    let (namespace, tier) = if policy.tier.is_empty() {
        (policy.namespace, "-".to_owned())
    } else {
        ("-".to_owned(), format!("{} {}", policy.tier, policy.priority))
    };
    vec![
        namespace,
        policy.name,
        tier,
        rules(policy.ingress, policy.ingress_rules),
        rules(policy.egress, policy.egress_rules),
        policy.selected_pods.to_string(),
        policy.local_pods.to_string(),
        if policy.selector.is_empty() { "(all pods)".to_owned() } else { policy.selector },
        if policy.problems == 0 { "-".to_owned() } else { policy.problems.to_string() },
    ]
}

fn endpoints(answer: ListEndpointsResponse, screen: &mut Screen<'_>) -> Result<(), Failure> {
    if answer.endpoints.is_empty() {
        writeln!(screen.err, "no endpoints")?;
        return Ok(());
    }
    let rows: Vec<_> = answer.endpoints.into_iter().map(endpoint_row).collect();
    let headings =
        ["NAMESPACE", "POD", "ADDRESSES", "STATE", "INTERFACE", "INGRESS", "EGRESS", "DROPPED", "DETAIL"];
    screen.table(&headings, &rows)?;
    Ok(())
}

fn endpoint_row(endpoint: Endpoint) -> Vec<String> {
    let state = state_name(endpoint.state());
    let isolation = |policies: &[String]| match policies.len() {
        0 => "open".to_owned(),
        1 => "1 policy".to_owned(),
        count => format!("{count} policies"),
    };
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let mut detail = endpoint.detail.clone();
    if endpoint.started_unprotected {
        detail = format!(
            "{}packets passed before the hook",
            if detail.is_empty() { String::new() } else { format!("{detail}; ") }
        );
    }
    vec![
        endpoint.namespace,
        endpoint.pod,
        or_dash(endpoint.addresses.join(",")),
        state.to_owned(),
        or_dash(endpoint.interface),
        isolation(&endpoint.ingress_isolated_by),
        isolation(&endpoint.egress_isolated_by),
        endpoint.dropped_packets.to_string(),
        or_dash(detail),
    ]
}
