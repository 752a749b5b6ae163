//! Events as one line.

use jiff::tz::TimeZone;

use super::show::{action, details, direction, ends, lost, policies, protocol, reason};
use crate::ctl::screen::{Colour, paint, plain, time};
use crate::events::details::Details;
use crate::proto::flow::Flow;
use crate::proto::observer::GetFlowsResponse;
use crate::proto::observer::get_flows_response::ResponseTypes;

const TIME: &str = "%H:%M:%S%.3f";
const DATE_AND_TIME: &str = "%Y-%m-%dT%H:%M:%S%.6f%:z";

/// `12:00:01.123 DROP ingress shop/client:40003 -> shop/db:9999 TCP SYN | no rule matched; isolated by ... | nearest ...`
pub(super) fn line(response: &GetFlowsResponse, colour: bool, zone: &TimeZone) -> Option<String> {
    let at = time(zone, response.time.as_ref(), TIME);
    match response.response_types.as_ref()? {
        ResponseTypes::Flow(flow) => {
            let (source, destination) = ends(flow);
            Some(format!("{at} {}", rest(flow, colour, &source.name(), &destination.name())))
        }
        ResponseTypes::LostEvents(event) => {
            Some(format!("{at} {} {}", paint(colour, Colour::Yellow, "LOST"), lost(event)))
        }
        ResponseTypes::NodeStatus(status) => {
            Some(format!("{at} {} {}", paint(colour, Colour::Red, "NODE"), plain(&status.message)))
        }
    }
}

/// The line with date, addresses, node, interface and identities.
pub(super) fn wide(response: &GetFlowsResponse, colour: bool, zone: &TimeZone) -> Option<String> {
    let at = time(zone, response.time.as_ref(), DATE_AND_TIME);
    let node = &response.node_name;
    match response.response_types.as_ref()? {
        ResponseTypes::Flow(flow) => {
            let (source, destination) = ends(flow);
            let main = rest(flow, colour, &source.name_and_address(), &destination.name_and_address());
            let mut facts = format!("{} -> {}", source.identity(), destination.identity());
            if let Some(interface) = &flow.interface {
                let name = if interface.name.is_empty() { "?" } else { &interface.name };
                facts.push_str(&format!("; {name}({})", interface.index));
            }
            if let Some(details) = details(flow) {
                facts.push_str(&format!("; {} bytes; plan {}", details.length, details.enforcement));
            }
            Some(format!("{at} {node} {main} | identities {facts}"))
        }
        ResponseTypes::LostEvents(event) => {
            Some(format!("{at} {node} {} {}", paint(colour, Colour::Yellow, "LOST"), lost(event)))
        }
        ResponseTypes::NodeStatus(status) => {
            Some(format!("{at} {node} {} {}", paint(colour, Colour::Red, "NODE"), plain(&status.message)))
        }
    }
}

fn rest(flow: &Flow, colour: bool, source: &str, destination: &str) -> String {
    let action = action(flow);
    let hue = match action {
        "ALLOW" => Colour::Green,
        "AUDIT" | "SEEN" | "REDIRECT" => Colour::Yellow,
        _ => Colour::Red,
    };
    let details = details(flow);
    let mut text = format!(
        "{} {} {source} -> {destination} {}",
        paint(colour, hue, action),
        direction(flow),
        protocol(flow)
    );
    for part in why(flow, details.as_ref(), colour) {
        text.push_str(&paint(colour, Colour::Dim, " | "));
        text.push_str(&part);
    }
    text
}

/// The reason with the policies, the nearest rule, and what else there is to say.
fn why(flow: &Flow, details: Option<&Details>, colour: bool) -> Vec<String> {
    let mut first = reason(flow, details);
    let isolated_by = match details {
        Some(details) => details.isolated_by.clone(),
        None => policies([&flow.ingress_denied_by, &flow.egress_denied_by]),
    };
    let Some(details) = details else {
        if !isolated_by.is_empty() {
            first.push_str(&format!("; denied by {}", isolated_by.join(", ")));
        }
        return vec![first];
    };
    if let Some(rule) = &details.denied_by {
        first.push_str(&format!(" {rule}"));
    } else if let Some(rule) = &details.allowed_by {
        first.push_str(&format!(" by {rule}"));
    } else if !isolated_by.is_empty() {
        first.push_str(&format!("; isolated by {}", isolated_by.join(", ")));
    }
    let mut parts = vec![first];
    if let Some(nearest) = &details.nearest_rule {
        parts.push(format!("nearest {}", paint(colour, Colour::Yellow, &nearest.to_string())));
    }
    if details.suppressed > 0 {
        parts.push(format!("{} more held back", details.suppressed));
    }
    if details.as_of_now {
        parts.push("explained by today's policies".to_owned());
    }
    if let Some(verdict) = &details.evaluator {
        parts.push(format!("the evaluator would {verdict} it"));
    }
    parts
}
