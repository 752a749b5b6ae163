//! What a record of the kernel says by itself, without any world to explain it.

use policy_common::abi::Direction;
use policy_common::event::Event;

use crate::events::details::Details;
use crate::events::packet;
use crate::events::reasons::drop_reason;
use crate::proto::flow;

/// What a record says without any world.
pub(super) fn bare(event: &Event) -> flow::Flow {
    let reason = event.reason();
    let (verdict, drop) = if reason.passes() {
        (flow::Verdict::Forwarded, flow::DropReason::Unknown)
    } else {
        (flow::Verdict::Dropped, drop_reason(reason))
    };
    let details = Details { reason: reason.name().to_owned(), length: event.length, ..Details::default() };
    flow::Flow {
        verdict: verdict.into(),
        drop_reason: drop as u32,
        drop_reason_desc: drop.into(),
        ip: packet::ip(event),
        l4: packet::layer4(event),
        r#type: flow::FlowType::L3L4.into(),
        traffic_direction: traffic_direction(event.direction()).into(),
        is_reply: (event.opener != 0).then_some(event.opener != event.direction),
        interface: Some(flow::NetworkInterface { index: event.ifindex, name: String::new() }),
        summary: packet::summary(event),
        policy_log: vec![reason.help().to_owned()],
        extensions: Some(details.to_any()),
        ..flow::Flow::default()
    }
}

/// The direction in which policy judged.
pub(super) fn traffic_direction(direction: Direction) -> flow::TrafficDirection {
    match direction {
        Direction::Ingress => flow::TrafficDirection::Ingress,
        Direction::Egress => flow::TrafficDirection::Egress,
    }
}
