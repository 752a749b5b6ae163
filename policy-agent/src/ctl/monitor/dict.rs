//! Events as one field a line, a blank line after each event.

use jiff::tz::TimeZone;

use super::show::{action, details, direction, ends, lost, policies, protocol, reason};
use crate::ctl::screen::{plain, time};
use crate::events::details::Details;
use crate::proto::flow::Flow;
use crate::proto::observer::GetFlowsResponse;
use crate::proto::observer::get_flows_response::ResponseTypes;

const DATE_AND_TIME: &str = "%Y-%m-%dT%H:%M:%S%.9f%:z";

/// The fields that are known.
pub(super) fn dict(response: &GetFlowsResponse, zone: &TimeZone) -> Option<String> {
    let mut fields = vec![
        ("time", time(zone, response.time.as_ref(), DATE_AND_TIME)),
        ("node", response.node_name.clone()),
    ];
    match response.response_types.as_ref()? {
        ResponseTypes::Flow(flow) => of_flow(flow, &mut fields),
        ResponseTypes::LostEvents(event) => fields.push(("lost", lost(event))),
        ResponseTypes::NodeStatus(status) => fields.push(("node status", plain(&status.message))),
    }
    let lines = fields.iter().filter(|(_, value)| !value.is_empty());
    Some(lines.map(|(name, value)| format!("{name:>16}: {value}\n")).collect())
}

type Fields = Vec<(&'static str, String)>;

fn of_flow(flow: &Flow, fields: &mut Fields) {
    let (source, destination) = ends(flow);
    let details = details(flow);
    fields.extend([
        ("action", action(flow).to_owned()),
        ("direction", direction(flow).to_owned()),
        ("source", source.name()),
        ("source address", source.address().to_owned()),
        ("source labels", source.labels()),
        ("source workload", source.workload().unwrap_or_default()),
        ("destination", destination.name()),
        ("dest. address", destination.address().to_owned()),
        ("dest. labels", destination.labels()),
        ("dest. workload", destination.workload().unwrap_or_default()),
        ("protocol", protocol(flow)),
        ("reason", reason(flow, details.as_ref())),
        ("allowed by", policies([&flow.ingress_allowed_by, &flow.egress_allowed_by]).join(", ")),
    ]);
    if let Some(interface) = &flow.interface {
        fields.push(("interface", format!("{} {}", interface.index, interface.name).trim_end().to_owned()));
    }
    if let Some(details) = &details {
        of_details(details, fields);
    }
    fields.push(("uuid", flow.uuid.clone()));
}

fn of_details(details: &Details, fields: &mut Fields) {
    fields.push(("isolated by", details.isolated_by.join(", ")));
    if let Some(rule) = &details.allowed_by {
        fields.push(("rule", rule.to_string()));
    }
    if let Some(rule) = &details.denied_by {
        fields.push(("denied by", rule.to_string()));
    }
    if let Some(nearest) = &details.nearest_rule {
        fields.extend([
            ("nearest rule", nearest.rule.to_string()),
            ("field", nearest.field.clone()),
            ("wanted", nearest.wanted.clone()),
            ("got", nearest.got.clone()),
        ]);
    }
    if details.suppressed > 0 {
        fields.push(("held back", details.suppressed.to_string()));
    }
    if details.as_of_now {
        fields.push(("explained by", "today's policies".to_owned()));
    }
    fields.push(("evaluator", details.evaluator.clone().unwrap_or_default()));
    fields.push(("length", details.length.to_string()));
    fields.push(("plan", details.enforcement.to_string()));
}
