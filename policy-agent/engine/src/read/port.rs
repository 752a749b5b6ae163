//! Port entries of a rule.

use serde_json::Value;

use super::at::At;
use super::label;
use crate::model::{PortMatch, Ports, Protocol};

const NOTHING: &str = "this port entry matches nothing";

/// Reads `ports` of a rule.
pub(super) fn ports(rule: &At<'_>) -> Ports {
    let Some(at) = rule.field_or_null("ports", "every port of every protocol") else { return Ports::All };
    match at.items("no port matches") {
        Some(items) if items.is_empty() => Ports::All,
        Some(items) => {
            Ports::Any(items.iter().map(|item| entry(item).unwrap_or(PortMatch::Nothing)).collect())
        }
        None => Ports::Any(vec![PortMatch::Nothing]),
    }
}

fn entry(at: &At<'_>) -> Option<PortMatch> {
    at.object(NOTHING)?;
    if !at.only(&["protocol", "port", "endPort"], NOTHING) {
        return None;
    }
    let protocol = match at.field("protocol") {
        Some(at) => protocol(&at, NOTHING)?,
        None => Protocol::Tcp,
    };
    let end = at.field("endPort");
    let Some(port) = at.field_or_null("port", "every port of the protocol") else {
        return match end {
            Some(end) => {
                end.bad(format!("endPort without port: {NOTHING}"));
                None
            }
            None => Some(PortMatch::Protocol(protocol)),
        };
    };
    if let Value::String(name) = port.value() {
        return named(&port, end.as_ref(), protocol, name);
    }
    let low = port.port_number(NOTHING)?;
    let Some(end) = end else { return Some(PortMatch::Range(protocol, low, low)) };
    let high = end.port_number(NOTHING)?;
    if high < low {
        end.bad(format!("endPort {high} is smaller than port {low}: {NOTHING}"));
        return None;
    }
    Some(PortMatch::Range(protocol, low, high))
}

fn named(port: &At<'_>, end: Option<&At<'_>>, protocol: Protocol, name: &str) -> Option<PortMatch> {
    if let Some(end) = end {
        end.bad(format!("endPort with the named port \"{name}\": {NOTHING}"));
        return None;
    }
    if !label::is_port_name(name) {
        let hint = if name.parse::<u16>().is_ok() { ", a number is written without quotes" } else { "" };
        port.bad(format!("\"{name}\" is no port name{hint}: {NOTHING}"));
        return None;
    }
    Some(PortMatch::Named(protocol, name.into()))
}

/// Reads a protocol that policy can name.
pub(super) fn protocol(at: &At<'_>, consequence: &str) -> Option<Protocol> {
    let name = at.text(consequence)?;
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
    if found.is_none() {
        at.bad(format!("unknown protocol \"{name}\" (TCP, UDP and SCTP are known): {consequence}"));
    }
    found
}
