//! From the flags of `monitor` to a request with Hubble's filters.

use std::time::Duration;

use prost_types::Timestamp;

use crate::ctl::args::{EventType, MonitorArgs};
use crate::events::clock::timestamp;
use crate::events::enrich::{TYPE_DROP, TYPE_VERDICT};
use crate::proto::flow::{EventTypeFilter, FlowFilter, Verdict};
use crate::proto::observer::GetFlowsRequest;

/// A point in time, as told on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then, in nanoseconds since 1970.
    At(i64),
}

impl Since {
    /// Reads `5m` or an RFC 3339 time.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(span) = text.parse::<jiff::SignedDuration>() {
            return Duration::try_from(span)
                .map(Self::Ago)
                .map_err(|_| "a time cannot be negative".to_owned());
        }
        let time: jiff::Timestamp = text
            .parse()
            .map_err(|_| "neither how long ago (5m) nor a time like 2026-09-21T14:13:23Z".to_owned())?;
        i64::try_from(time.as_nanosecond()).map(Self::At).map_err(|_| "out of range".to_owned())
    }

    fn at(self, now: i64) -> Timestamp {
        match self {
            Self::Ago(ago) => {
                timestamp(now.saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX)))
            }
            Self::At(time) => timestamp(time),
        }
    }
}

/// Whether the stream goes on after the past. Without any mention of the past it is all there is to show.
#[must_use]
pub fn follows(args: &MonitorArgs) -> bool {
    args.follow || (args.last.is_none() && args.since.is_none())
}

/// The request. `now`: nanoseconds since 1970.
#[must_use]
pub fn request(args: &MonitorArgs, now: i64) -> GetFlowsRequest {
    GetFlowsRequest {
        number: args.last.unwrap_or(0),
        follow: follows(args),
        whitelist: filters(args),
        since: args.since.map(|since| since.at(now)),
        ..GetFlowsRequest::default()
    }
}

/// Each flag that may match either end doubles the filters: once for the source, once for the destination.
fn filters(args: &MonitorArgs) -> Vec<FlowFilter> {
    let base = FlowFilter { protocol: args.protocol.clone(), ..FlowFilter::default() };
    let mut filters = of_types(&args.types, &base);
    let pods = pods(args);
    let ports: Vec<String> = args.port.iter().map(u16::to_string).collect();
    let namespaces: Vec<String> = args.namespace.iter().map(|namespace| format!("{namespace}/")).collect();
    // With --pod the namespace is part of the pod's name.
    let pods = if args.pod.is_empty() { namespaces } else { pods };
    either(&mut filters, &pods, |f| &mut f.source_pod, |f| &mut f.destination_pod);
    either(&mut filters, &args.label, |f| &mut f.source_label, |f| &mut f.destination_label);
    either(&mut filters, &args.ip, |f| &mut f.source_ip, |f| &mut f.destination_ip);
    either(&mut filters, &ports, |f| &mut f.source_port, |f| &mut f.destination_port);
    filters
}

type Field = fn(&mut FlowFilter) -> &mut Vec<String>;

fn either(filters: &mut Vec<FlowFilter>, values: &[String], source: Field, destination: Field) {
    if values.is_empty() {
        return;
    }
    let sides = |filter: FlowFilter| {
        [source, destination].map(|field| {
            let mut filter = filter.clone();
            field(&mut filter).extend_from_slice(values);
            filter
        })
    };
    *filters = std::mem::take(filters).into_iter().flat_map(sides).collect();
}

/// A denied packet is told twice, as verdict and as drop; no choice of types shows it twice.
fn of_types(types: &[EventType], base: &FlowFilter) -> Vec<FlowFilter> {
    let of = |kind: i32, verdict: Vec<i32>| FlowFilter {
        event_type: vec![EventTypeFilter { r#type: kind, ..EventTypeFilter::default() }],
        verdict,
        ..base.clone()
    };
    match (types.contains(&EventType::Drop), types.contains(&EventType::Verdict)) {
        (true | false, false) => vec![of(TYPE_DROP, Vec::new())],
        (false, true) => vec![of(TYPE_VERDICT, Vec::new())],
        (true, true) => {
            vec![of(TYPE_DROP, Vec::new()), of(TYPE_VERDICT, vec![Verdict::Forwarded.into()])]
        }
    }
}

/// The server reads a name without a slash as one of the namespace `default`; here it means any namespace.
fn pods(args: &MonitorArgs) -> Vec<String> {
    let names = |name: &String| -> Vec<String> {
        match (name.contains('/'), args.namespace.as_slice()) {
            (true, _) => vec![name.clone()],
            (false, []) => vec![format!("/{name}")],
            (false, namespaces) => namespaces.iter().map(|ns| format!("{ns}/{name}")).collect(),
        }
    };
    args.pod.iter().flat_map(names).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::ctl::args::{Cli, Command};

    fn args(line: &str) -> MonitorArgs {
        let words = ["policyctl", "monitor"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Monitor(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn whitelist(line: &str) -> Vec<FlowFilter> {
        request(&args(line), 0).whitelist
    }

    fn kinds(filters: &[FlowFilter]) -> Vec<(i32, usize)> {
        filters.iter().map(|filter| (filter.event_type[0].r#type, filter.verdict.len())).collect()
    }

    #[test]
    fn each_packet_is_asked_for_once() {
        assert_eq!(kinds(&whitelist("")), [(1, 0)]);
        assert_eq!(kinds(&whitelist("--type drop")), [(1, 0)]);
        assert_eq!(kinds(&whitelist("--type verdict")), [(5, 0)]);
        assert_eq!(kinds(&whitelist("--type drop --type verdict")), [(1, 0), (5, 1)]);
    }

    #[test]
    fn flags_match_either_end_on_their_own() {
        let filters = whitelist("--pod shop/web --port 5432 --protocol tcp");
        let ends: Vec<_> = filters
            .iter()
            .map(|f| [&f.source_pod, &f.destination_pod, &f.source_port, &f.destination_port].map(Vec::len))
            .collect();
        assert_eq!(ends, [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]);
        assert!(filters.iter().all(|filter| filter.protocol == ["tcp"]));
    }

    #[test]
    fn names_and_namespaces() {
        let source = |line: &str| whitelist(line)[0].source_pod.clone();
        assert_eq!(source("--pod db"), ["/db"]);
        assert_eq!(source("--pod shop/db"), ["shop/db"]);
        assert_eq!(source("-n shop,dev"), ["shop/", "dev/"]);
        assert_eq!(source("-n shop -n dev --pod db"), ["shop/db", "dev/db"]);
    }

    #[test]
    fn what_part_of_time_is_shown() {
        let of = |line: &str| {
            let request = request(&args(line), 100_000_000_000);
            (request.follow, request.number, request.since.map(|since| since.seconds))
        };
        assert_eq!(of(""), (true, 0, None));
        assert_eq!(of("--last 5"), (false, 5, None));
        assert_eq!(of("--last 5 -f"), (true, 5, None));
        assert_eq!(of("--since 1m"), (false, 0, Some(40)));
        assert_eq!(of("--since 1970-01-01T00:00:07Z -f"), (true, 0, Some(7)));
        assert!(Since::parse("yesterday").is_err() && Since::parse("-5m").is_err());
    }
}
