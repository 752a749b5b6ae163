//! Hubble's JSON lines: the proto3 JSON mapping of `GetFlowsResponse` with the names of the protocol files.

use std::io;

use anyhow::Context as _;
use prost::Message;
use prost_reflect::{DynamicMessage, SerializeOptions};

use crate::proto::DESCRIPTORS;
use crate::proto::observer::GetFlowsResponse;

const RESPONSE: &str = "observer.GetFlowsResponse";

/// A response as one line without its end.
///
/// # Errors
/// When its extension holds a type that is not in our descriptors.
pub fn line(response: &GetFlowsResponse) -> anyhow::Result<String> {
    message(RESPONSE, response)
}

/// Reads a line. Unknown fields are skipped.
///
/// # Errors
/// When the text is not JSON of a response.
pub fn parse(line: &str) -> anyhow::Result<GetFlowsResponse> {
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let options = prost_reflect::DeserializeOptions::new().deny_unknown_fields(false);
    let message =
        DynamicMessage::deserialize_with_options(descriptor(RESPONSE)?, &mut deserializer, &options)
            .context("not a line of flows")?;
    deserializer.end().context("more after the end of the line's object")?;
    message.transcode_to().context("not a line of flows")
}

/// A message of our own service as JSON for programs: names of the protocol files, numbers as numbers, and every field,
/// also where it is zero or empty.
///
/// # Errors
/// When the name is unknown.
pub fn full(name: &str, value: &impl Message) -> anyhow::Result<String> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    write(name, value, &options)
}

fn message(name: &str, value: &impl Message) -> anyhow::Result<String> {
    write(name, value, &SerializeOptions::new().use_proto_field_name(true))
}

fn write(name: &str, value: &impl Message, options: &SerializeOptions) -> anyhow::Result<String> {
    let mut dynamic = DynamicMessage::new(descriptor(name)?);
    dynamic.transcode_from(value).with_context(|| format!("not a {name}"))?;
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, WholeNumbers);
    dynamic.serialize_with_options(&mut serializer, options).with_context(|| format!("writing {name}"))?;
    String::from_utf8(out).context("JSON is UTF-8")
}

/// Writes `3`, not `3.0`: all numbers of a `Struct` are floating point, ours are counts.
struct WholeNumbers;

impl serde_json::ser::Formatter for WholeNumbers {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        // Display of a whole number has no fraction and no exponent.
        write!(writer, "{value}")
    }
}

fn descriptor(name: &str) -> anyhow::Result<prost_reflect::MessageDescriptor> {
    DESCRIPTORS.get_message_by_name(name).with_context(|| format!("no message {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::details::Details;
    use crate::events::fixture::{dropped_syn, history, world};
    use crate::events::{Enricher, Now, Views};
    use crate::proto::flow::{LostEvent, LostEventSource};
    use crate::proto::observer::get_flows_response::ResponseTypes;

    /// A line that Hubble's own command line reads and prints back with the same content.
    const HUBBLE: &str = r#"{"flow":{"time":"2026-09-21T14:13:23.123456789Z","uuid":"5f6c1c52-6c2e-4d4b-9a55-0d7b8a2f9b11","emitter":{"name":"Policyd","version":"0.1.0"},"verdict":"DROPPED","drop_reason":133,"IP":{"source":"10.0.0.11","destination":"10.0.0.12","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":40003,"destination_port":9999,"flags":{"SYN":true}}},"source":{"ID":11,"identity":16001,"namespace":"shop","labels":["k8s:app=client","k8s:io.kubernetes.pod.namespace=shop"],"pod_name":"client-7d9c","workloads":[{"name":"client","kind":"Deployment"}]},"destination":{"ID":12,"identity":16002,"namespace":"shop","labels":["k8s:app=db","k8s:io.kubernetes.pod.namespace=shop"],"pod_name":"db-0","workloads":[{"name":"db","kind":"StatefulSet"}]},"Type":"L3_L4","node_name":"node-a","event_type":{"type":5},"traffic_direction":"INGRESS","drop_reason_desc":"POLICY_DENIED","is_reply":false,"Summary":"TCP Flags: SYN","extensions":{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"reason":"no_rule_matched","nearest_rule":"shop/db-allow ingress[0]: port 5432, got 9999","isolated_by":["shop/db-default-deny","shop/db-allow"]}},"ingress_denied_by":[{"name":"db-default-deny","namespace":"shop","kind":"NetworkPolicy"}],"policy_log":["no rule matched"]},"node_name":"node-a","time":"2026-09-21T14:13:23.123456789Z"}"#;

    fn value(text: &str) -> serde_json::Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn hubbles_line_is_read_and_written_back_with_the_same_content() {
        let read = parse(HUBBLE).unwrap();
        assert_eq!(value(&line(&read).unwrap()), value(HUBBLE));
    }

    #[test]
    fn our_drop_is_this_line() {
        let now = Now { monotonic: 2_000, wall: 1_790_000_000_000_002_000 };
        let flows = Enricher::new("node-a", Views::Both).flows(&dropped_syn(9999), &history(world()), now);
        let mut flow = flows[1].clone();
        flow.uuid = "u".into();
        let response = GetFlowsResponse {
            node_name: "node-a".into(),
            time: flow.time,
            response_types: Some(ResponseTypes::Flow(Box::new(flow))),
        };
        let written = line(&response).unwrap();
        let golden = include_str!("testdata/drop.json").replace("VERSION", env!("CARGO_PKG_VERSION"));
        assert_eq!(written, golden.trim_end());
        // Not compared as bytes: the entries of a map have no order on the wire.
        let read = parse(&written).unwrap();
        assert_eq!(line(&read).unwrap(), written);
        let details = |response: GetFlowsResponse| match response.response_types {
            Some(ResponseTypes::Flow(flow)) => Details::from_any(flow.extensions.as_ref()?),
            _ => None,
        };
        let read = details(read);
        assert!(read.is_some() && read == details(response));
    }

    #[test]
    fn losses_are_strings_and_zeros_are_left_out() {
        let lost = LostEvent {
            source: LostEventSource::HubbleRingBuffer.into(),
            num_events_lost: 42,
            ..LostEvent::default()
        };
        let response = GetFlowsResponse {
            response_types: Some(ResponseTypes::LostEvents(lost)),
            ..GetFlowsResponse::default()
        };
        let golden = r#"{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"42"}}"#;
        assert_eq!(line(&response).unwrap(), golden);
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for text in ["", "{", "[]", r#"{"flow":3}"#, "{} {}"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse(r#"{"unknown":1,"nodeName":"n"}"#).unwrap().node_name, "n");
    }
}
