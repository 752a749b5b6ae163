//! Hubble's flow filters: parsed once per request, refused where we cannot honour them.
//!
//! Within a filter all fields must match, within a field any value; a list of filters matches if one does.

mod end;
mod pattern;
mod selector;

use end::{Ends, ends};
use pattern::{IpProtocol, NodePattern};

use crate::events::packet::flag_byte;
use crate::proto::flow::{
    EventTypeFilter, Flow, FlowFilter, NetworkInterface, TcpFlags, Verdict, layer4::Protocol,
};

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A field that this server does not implement. Ignoring it would show flows that nobody asked for.
    #[error("filter field {0} is not supported")]
    Unsupported(&'static str),
    /// A value that cannot be read.
    #[error("filter field {field}: {value:?}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Whitelist minus blacklist.
#[derive(Debug, Default)]
pub struct Filters {
    whitelist: Vec<Filter>,
    blacklist: Vec<Filter>,
}

impl Filters {
    /// Reads the filters of a request.
    ///
    /// # Errors
    /// For a field that is not supported and a value that cannot be read.
    pub fn parse(whitelist: Vec<FlowFilter>, blacklist: Vec<FlowFilter>) -> Result<Self, FilterError> {
        let parse = |list: Vec<FlowFilter>| list.into_iter().map(Filter::parse).collect::<Result<_, _>>();
        Ok(Self { whitelist: parse(whitelist)?, blacklist: parse(blacklist)? })
    }

    /// Whether a flow is asked for.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let Self { whitelist, blacklist } = self;
        any(whitelist, |filter| filter.matches(flow)) && !blacklist.iter().any(|filter| filter.matches(flow))
    }
}

/// One filter. An empty list restricts nothing.
#[derive(Debug)]
struct Filter {
    ends: Ends,
    verdict: Vec<i32>,
    event_type: Vec<EventTypeFilter>,
    protocol: Vec<IpProtocol>,
    reply: Vec<bool>,
    tcp_flags: Vec<u8>,
    node_name: Vec<NodePattern>,
    ip_version: Vec<i32>,
    uuid: Vec<String>,
    traffic_direction: Vec<i32>,
    drop_reason_desc: Vec<i32>,
    interface: Vec<NetworkInterface>,
}

impl Filter {
    fn parse(mut filter: FlowFilter) -> Result<Self, FilterError> {
        refuse_unsupported(&filter)?;
        let ends = ends(&mut filter)?;
        Ok(Self {
            ends,
            verdict: filter.verdict,
            event_type: filter.event_type,
            protocol: parse_all("protocol", &filter.protocol, IpProtocol::parse)?,
            reply: filter.reply,
            tcp_flags: filter.tcp_flags.iter().map(wanted_flags).collect::<Result<_, _>>()?,
            node_name: parse_all("node_name", &filter.node_name, NodePattern::parse)?,
            ip_version: filter.ip_version,
            uuid: filter.uuid,
            traffic_direction: filter.traffic_direction,
            drop_reason_desc: filter.drop_reason_desc,
            interface: filter.interface.into_iter().map(named).collect::<Result<_, _>>()?,
        })
    }

    fn matches(&self, flow: &Flow) -> bool {
        let Self {
            ends,
            verdict,
            event_type,
            protocol,
            reply,
            tcp_flags,
            node_name,
            ip_version,
            uuid,
            traffic_direction,
            drop_reason_desc,
            interface,
        } = self;
        ends.match_flow(flow)
            && any(verdict, |wanted| *wanted == flow.verdict)
            && any(event_type, |wanted| is_of_type(flow, wanted))
            && any(protocol, |wanted| wanted.matches(flow))
            && any(reply, |wanted| is_reply(flow) == Some(*wanted))
            && any(tcp_flags, |wanted| tcp_byte(flow).is_some_and(|byte| byte & wanted == *wanted))
            && any(node_name, |wanted| wanted.matches(&flow.node_name))
            && any(ip_version, |wanted| flow.ip.as_ref().is_some_and(|ip| ip.ip_version == *wanted))
            && any(uuid, |wanted| *wanted == flow.uuid)
            && any(traffic_direction, |wanted| *wanted == flow.traffic_direction)
            && any(drop_reason_desc, |wanted| {
                flow.verdict() == Verdict::Dropped && *wanted == flow.drop_reason_desc
            })
            && any(interface, |wanted| {
                flow.interface.as_ref().is_some_and(|interface| interface.name == wanted.name)
            })
    }
}

macro_rules! first_set {
    ($($field:ident),*) => {
        [$((stringify!($field), !$field.is_empty())),*].into_iter().find_map(|(field, set)| set.then_some(field))
    };
}

/// Refuses fields that this server does not implement. Every field is named, so that one added to the protocol cannot be
/// overlooked.
#[rustfmt::skip]
fn refuse_unsupported(filter: &FlowFilter) -> Result<(), FilterError> {
    let FlowFilter {
        // Implemented.
        source_ip: _, source_pod: _, destination_ip: _, destination_pod: _,
        verdict: _, event_type: _, source_fqdn: _, destination_fqdn: _,
        source_label: _, destination_label: _, protocol: _, source_port: _,
        destination_port: _, reply: _, source_service: _, destination_service: _,
        source_identity: _, destination_identity: _, tcp_flags: _, node_name: _,
        ip_version: _, source_workload: _, destination_workload: _, uuid: _,
        traffic_direction: _, drop_reason_desc: _, interface: _,
        // Not implemented.
        http_status_code, dns_query, http_method, http_path, http_url,
        http_header, trace_id, source_ip_xlated, node_labels, source_cluster_name,
        destination_cluster_name, ip_trace_id, encrypted,
        experimental,
    } = filter;
    let set = first_set!(http_status_code, dns_query, http_method, http_path, http_url, http_header,
        trace_id, source_ip_xlated, node_labels, source_cluster_name,
        destination_cluster_name, ip_trace_id, encrypted);
    let experimental = experimental.as_ref().is_some_and(|inner| !inner.cel_expression.is_empty());
    match set.or(experimental.then_some("experimental")) {
        Some(field) => Err(FilterError::Unsupported(field)),
        None => Ok(()),
    }
}

/// An empty list restricts nothing.
fn any<T>(list: &[T], matches: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(matches)
}

fn parse_all<T>(
    field: &'static str,
    values: &[String],
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, FilterError> {
    let one = |value: &String| {
        parse(value).map_err(|problem| FilterError::Invalid { field, value: value.clone(), problem })
    };
    values.iter().map(one).collect()
}

fn is_of_type(flow: &Flow, wanted: &EventTypeFilter) -> bool {
    let Some(event) = flow.event_type else { return false };
    (wanted.r#type == 0 || wanted.r#type == event.r#type)
        && (!wanted.match_sub_type || wanted.sub_type == event.sub_type)
}

/// A dropped packet of which nobody knows counts as no reply; other flows without the mark are neither.
fn is_reply(flow: &Flow) -> Option<bool> {
    flow.is_reply.or_else(|| (flow.verdict() == Verdict::Dropped).then_some(false))
}

fn tcp_byte(flow: &Flow) -> Option<u8> {
    match flow.l4.as_ref()?.protocol.as_ref()? {
        Protocol::Tcp(tcp) => tcp.flags.as_ref().map(flag_byte),
        Protocol::Udp(_) | Protocol::IcmPv4(_) | Protocol::IcmPv6(_) | Protocol::Sctp(_) => None,
    }
}

fn wanted_flags(flags: &TcpFlags) -> Result<u8, FilterError> {
    // The bit left the TCP header long ago and is in no record.
    if flags.ns { Err(FilterError::Unsupported("tcp_flags.NS")) } else { Ok(flag_byte(flags)) }
}

fn named(interface: NetworkInterface) -> Result<NetworkInterface, FilterError> {
    if interface.name.is_empty() || interface.index != 0 {
        let (field, problem) = ("interface", "only a name is supported");
        return Err(FilterError::Invalid { field, value: format!("index {}", interface.index), problem });
    }
    Ok(interface)
}

#[cfg(test)]
mod tests;
