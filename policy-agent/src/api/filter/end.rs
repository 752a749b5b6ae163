//! The fields of a filter that exist twice: for the source and for the destination.

use std::mem::take;

use super::pattern::{AddressPattern, NamePattern, PodPattern, port};
use super::selector::Selector;
use super::{FilterError, any, parse_all};
use crate::proto::flow::layer4::Protocol;
use crate::proto::flow::{Endpoint, Flow, FlowFilter, Layer4, Service, Workload};

/// Both ends.
#[derive(Debug)]
pub(super) struct Ends {
    source: End,
    destination: End,
}

/// What is wanted of one end.
#[derive(Debug)]
struct End {
    ip: Vec<AddressPattern>,
    pod: Vec<PodPattern>,
    fqdn: Vec<NamePattern>,
    label: Vec<Selector>,
    port: Vec<u32>,
    service: Vec<PodPattern>,
    identity: Vec<u32>,
    workload: Vec<Workload>,
}

/// One end of a flow.
struct FlowEnd<'a> {
    ip: Option<&'a str>,
    endpoint: Option<&'a Endpoint>,
    names: &'a [String],
    port: Option<u32>,
    service: Option<&'a Service>,
}

/// Takes the fields of both ends out of a filter.
pub(super) fn ends(filter: &mut FlowFilter) -> Result<Ends, FilterError> {
    let source = End {
        ip: parse_all("source_ip", &filter.source_ip, AddressPattern::parse)?,
        pod: parse_all("source_pod", &filter.source_pod, PodPattern::parse)?,
        fqdn: parse_all("source_fqdn", &filter.source_fqdn, NamePattern::parse)?,
        label: parse_all("source_label", &filter.source_label, Selector::parse)?,
        port: parse_all("source_port", &filter.source_port, port)?,
        service: parse_all("source_service", &filter.source_service, PodPattern::parse)?,
        identity: take(&mut filter.source_identity),
        workload: take(&mut filter.source_workload),
    };
    let destination = End {
        ip: parse_all("destination_ip", &filter.destination_ip, AddressPattern::parse)?,
        pod: parse_all("destination_pod", &filter.destination_pod, PodPattern::parse)?,
        fqdn: parse_all("destination_fqdn", &filter.destination_fqdn, NamePattern::parse)?,
        label: parse_all("destination_label", &filter.destination_label, Selector::parse)?,
        port: parse_all("destination_port", &filter.destination_port, port)?,
        service: parse_all("destination_service", &filter.destination_service, PodPattern::parse)?,
        identity: take(&mut filter.destination_identity),
        workload: take(&mut filter.destination_workload),
    };
    Ok(Ends { source, destination })
}

impl Ends {
    pub(super) fn match_flow(&self, flow: &Flow) -> bool {
        let (source_port, destination_port) = ports(flow.l4.as_ref());
        let source = FlowEnd {
            ip: flow.ip.as_ref().map(|ip| ip.source.as_str()),
            endpoint: flow.source.as_ref(),
            names: &flow.source_names,
            port: source_port,
            service: flow.source_service.as_ref(),
        };
        let destination = FlowEnd {
            ip: flow.ip.as_ref().map(|ip| ip.destination.as_str()),
            endpoint: flow.destination.as_ref(),
            names: &flow.destination_names,
            port: destination_port,
            service: flow.destination_service.as_ref(),
        };
        self.source.matches(&source) && self.destination.matches(&destination)
    }
}

impl End {
    fn matches(&self, end: &FlowEnd<'_>) -> bool {
        let Self { ip, pod, fqdn, label, port, service, identity, workload } = self;
        let endpoint = end.endpoint;
        any(ip, |wanted| end.ip.is_some_and(|ip| wanted.matches(ip)))
            && any(pod, |wanted| {
                endpoint.is_some_and(|endpoint| wanted.matches(&endpoint.namespace, &endpoint.pod_name))
            })
            && any(fqdn, |wanted| end.names.iter().any(|name| wanted.matches(name)))
            && any(label, |wanted| endpoint.is_some_and(|endpoint| wanted.matches(&endpoint.labels)))
            && any(port, |wanted| end.port == Some(*wanted))
            && any(service, |wanted| {
                end.service.is_some_and(|service| wanted.matches(&service.namespace, &service.name))
            })
            && any(identity, |wanted| endpoint.is_some_and(|endpoint| endpoint.identity == *wanted))
            && any(workload, |wanted| endpoint.is_some_and(|endpoint| has_workload(endpoint, wanted)))
    }
}

/// An empty name or kind stands for any.
fn has_workload(endpoint: &Endpoint, wanted: &Workload) -> bool {
    endpoint.workloads.iter().any(|workload| {
        (wanted.name.is_empty() || wanted.name == workload.name)
            && (wanted.kind.is_empty() || wanted.kind == workload.kind)
    })
}

fn ports(l4: Option<&Layer4>) -> (Option<u32>, Option<u32>) {
    match l4.and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => (Some(tcp.source_port), Some(tcp.destination_port)),
        Some(Protocol::Udp(udp)) => (Some(udp.source_port), Some(udp.destination_port)),
        Some(Protocol::Sctp(sctp)) => (Some(sctp.source_port), Some(sctp.destination_port)),
        Some(Protocol::IcmPv4(_) | Protocol::IcmPv6(_)) | None => (None, None),
    }
}
