//! The words for the parts of a flow, shared by all forms.

use std::net::IpAddr;

use policy_common::reason::Reason;

use crate::events::details::Details;
use crate::events::enrich::TYPE_VERDICT;
use crate::events::names::IDENTITY_WORLD;
use crate::events::packet::{flag_names, icmp_name};
use crate::proto::flow::layer4::Protocol;
use crate::proto::flow::{
    DropReason, Endpoint, Flow, LostEvent, LostEventSource, Policy, Service, TrafficDirection, Verdict,
};

/// What happened, in one word.
pub(super) fn action(flow: &Flow) -> &'static str {
    let verdict_event = flow.event_type.is_some_and(|event| event.r#type == TYPE_VERDICT);
    match flow.verdict() {
        Verdict::Forwarded => "ALLOW",
        Verdict::Dropped if verdict_event => "DENY",
        Verdict::Dropped => "DROP",
        Verdict::Audit => "AUDIT",
        Verdict::Error => "ERROR",
        Verdict::Redirected => "REDIRECT",
        Verdict::Unknown | Verdict::Traced | Verdict::Translated => "SEEN",
    }
}

/// Direction of the policy that judged.
pub(super) fn direction(flow: &Flow) -> &'static str {
    match flow.traffic_direction() {
        TrafficDirection::Ingress => "ingress",
        TrafficDirection::Egress => "egress",
        TrafficDirection::Unknown => "-",
    }
}

/// One end of a flow.
pub(super) struct End<'a> {
    endpoint: Option<&'a Endpoint>,
    service: Option<&'a Service>,
    names: &'a [String],
    address: Option<&'a str>,
    port: Option<u32>,
}

/// Source and destination.
pub(super) fn ends(flow: &Flow) -> (End<'_>, End<'_>) {
    let (source_port, destination_port) = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => (Some(tcp.source_port), Some(tcp.destination_port)),
        Some(Protocol::Udp(udp)) => (Some(udp.source_port), Some(udp.destination_port)),
        Some(Protocol::Sctp(sctp)) => (Some(sctp.source_port), Some(sctp.destination_port)),
        Some(Protocol::IcmPv4(_) | Protocol::IcmPv6(_)) | None => (None, None),
    };
    let source = End {
        endpoint: flow.source.as_ref(),
        service: flow.source_service.as_ref(),
        names: &flow.source_names,
        address: flow.ip.as_ref().map(|ip| ip.source.as_str()),
        port: source_port,
    };
    let destination = End {
        endpoint: flow.destination.as_ref(),
        service: flow.destination_service.as_ref(),
        names: &flow.destination_names,
        address: flow.ip.as_ref().map(|ip| ip.destination.as_str()),
        port: destination_port,
    };
    (source, destination)
}

impl End<'_> {
    /// `shop/db:5432`, `node/node-a`, `service/shop/db:80`, `192.0.2.7:443`, `[fd00::1]:443`.
    pub(super) fn name(&self) -> String {
        let port = self.port.map_or_else(String::new, |port| format!(":{port}"));
        match self.object() {
            Some(object) => format!("{object}{port}"),
            None => format!("{}{port}", self.bracketed()),
        }
    }

    /// The name with the address behind it.
    pub(super) fn name_and_address(&self) -> String {
        match (self.object(), self.address) {
            (Some(_), Some(address)) => format!("{}({address})", self.name()),
            _ => self.name(),
        }
    }

    /// What it is, where the address alone does not tell.
    pub(super) fn identity(&self) -> u32 {
        self.endpoint.map_or(0, |endpoint| endpoint.identity)
    }

    pub(super) fn address(&self) -> &str {
        self.address.unwrap_or("-")
    }

    pub(super) fn labels(&self) -> String {
        self.endpoint.map_or_else(String::new, |endpoint| endpoint.labels.join(","))
    }

    pub(super) fn workload(&self) -> Option<String> {
        let workload = self.endpoint?.workloads.first()?;
        Some(format!("{}/{}", workload.kind, workload.name))
    }

    fn object(&self) -> Option<String> {
        let pod = self.endpoint.filter(|endpoint| !endpoint.pod_name.is_empty());
        if let Some(pod) = pod {
            return Some(format!("{}/{}", pod.namespace, pod.pod_name));
        }
        if let Some(service) = self.service {
            return Some(format!("service/{}/{}", service.namespace, service.name));
        }
        let node = self.names.first().filter(|_| self.identity() != IDENTITY_WORLD)?;
        Some(format!("node/{node}"))
    }

    fn bracketed(&self) -> String {
        match (self.address, self.port) {
            (Some(address), Some(_)) if address.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6()) => {
                format!("[{address}]")
            }
            (Some(address), _) => address.to_owned(),
            (None, _) => "?".to_owned(),
        }
    }
}

/// `TCP SYN`, `UDP`, `ICMPv4 EchoRequest`, `other`.
pub(super) fn protocol(flow: &Flow) -> String {
    let mut text = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => {
            let flags = tcp.flags.as_ref().map(flag_names).unwrap_or_default();
            if flags.is_empty() { "TCP".to_owned() } else { format!("TCP {}", flags.join(",")) }
        }
        Some(Protocol::Udp(_)) => "UDP".to_owned(),
        Some(Protocol::Sctp(_)) => "SCTP".to_owned(),
        Some(Protocol::IcmPv4(icmp)) => format!("ICMPv4 {}", icmp_name(false, icmp.r#type, icmp.code)),
        Some(Protocol::IcmPv6(icmp)) => format!("ICMPv6 {}", icmp_name(true, icmp.r#type, icmp.code)),
        None => flow.summary.split(';').next().unwrap_or_default().to_owned(),
    };
    if flow.is_reply == Some(true) {
        text.push_str(" (reply)");
    }
    text
}

/// Our extension of a flow.
pub(super) fn details(flow: &Flow) -> Option<Details> {
    flow.extensions.as_ref().and_then(Details::from_any)
}

/// The reason in words.
pub(super) fn reason(flow: &Flow, details: Option<&Details>) -> String {
    let name = match details {
        Some(details) => details.reason.clone(),
        None if flow.drop_reason_desc() == DropReason::Unknown => String::new(),
        None => flow.drop_reason_desc().as_str_name().to_ascii_lowercase(),
    };
    let words = name.replace('_', " ");
    match &flow.ip {
        // The end is told as the pod that sent it; what it claimed to be is the point.
        Some(ip) if name == Reason::SpoofedSource.name() => format!("{words} {}", ip.source),
        _ => words,
    }
}

/// Policies as `namespace/name`, of whatever list is filled.
pub(super) fn policies(lists: [&[Policy]; 2]) -> Vec<String> {
    lists.concat().iter().map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect()
}

/// What was lost, in words.
pub(super) fn lost(event: &LostEvent) -> String {
    let count = event.num_events_lost;
    match event.source() {
        LostEventSource::PerfEventRingBuffer => format!("{count} events: the kernel's ring was full"),
        LostEventSource::ObserverEventsQueue => {
            format!("{count} events held back by the rate limit (the counters have them)")
        }
        LostEventSource::HubbleRingBuffer => format!("{count} events: this reader was too slow"),
        LostEventSource::UnknownLostEventSource => format!("{count} events"),
    }
}
