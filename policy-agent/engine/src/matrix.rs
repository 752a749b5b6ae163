//! Who may open what to whom: every pair of pods, and every pod and Service, on given ports, as rows and as compact tables.
//!
//! A pair is judged on every address family that both pods have. It is allowed if every one of them is, because a
//! client picks the family by itself; where the families differ the row shows both.

mod through;

use std::collections::BTreeSet;
use std::fmt::{self, Display, Write};
use std::net::IpAddr;

use policy_common::abi::Direction;
use serde::{Serialize, Serializer};

pub use self::through::{BackendRow, ServiceRow, Through};
use crate::model::{ObjectKey, Pod, Protocol};
use crate::oracle::{self, Judges};
use crate::verdict::Query;
use crate::words;
use crate::world::World;

/// Allowed or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The flow may open.
    Allow,
    /// It may not.
    Deny,
}

impl Verdict {
    fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }

    fn and(self, other: Self) -> Self {
        Self::of(self == Self::Allow && other == Self::Allow)
    }
}

/// The verdicts of a pair by address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Families {
    /// IPv4.
    pub v4: Verdict,
    /// IPv6.
    pub v6: Verdict,
}

/// One pair of pods on one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Who opens.
    #[serde(serialize_with = "as_text")]
    pub from: ObjectKey,
    /// Towards whom.
    #[serde(serialize_with = "as_text")]
    pub to: ObjectKey,
    /// Port of the destination.
    pub port: u16,
    /// Protocol.
    #[serde(serialize_with = "as_text")]
    pub protocol: Protocol,
    /// Both sides together.
    pub verdict: Verdict,
    /// The destination's side.
    pub ingress: Verdict,
    /// The source's side.
    pub egress: Verdict,
    /// Set where the families differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub families: Option<Families>,
}

fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// All rows, in order of ports as given, then source, then destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// Rows.
    pub rows: Vec<Row>,
    /// Pods and the Services that have one of the ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceRow>,
    /// What is not in the rows, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Judges every pair of pods that have addresses, a pod with itself included, on every port.
#[must_use]
pub fn matrix(world: &World, ports: &[(Protocol, u16)]) -> Matrix {
    let (ends, mut notes) = ends(world);
    let mut rows = Vec::with_capacity(ends.len() * ends.len() * ports.len());
    let mut services = Vec::new();
    for &(protocol, port) in ports {
        services.extend(through::rows(world, &ends, protocol, port));
        for from in &ends {
            rows.extend(ends.iter().filter_map(|to| row(world, from, to, protocol, port)));
        }
    }
    let strangers = ends.iter().enumerate().flat_map(|(i, a)| ends[i + 1..].iter().map(move |b| (a, b)));
    let strangers = strangers.filter(|(a, b)| address_pairs(a, b).next().is_none());
    note(
        &mut notes,
        "no common address family, not judged",
        strangers.map(|(a, b)| format!("{} and {}", a.pod.key, b.pod.key)),
    );
    Matrix { rows, services, notes }
}

/// A pod with what decides about it.
struct End<'a> {
    pod: &'a Pod,
    addresses: Vec<IpAddr>,
    ingress: Judges<'a>,
    egress: Judges<'a>,
}

fn ends(world: &World) -> (Vec<End<'_>>, Vec<String>) {
    let (mut ends, mut host, mut finished, mut without) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pod in world.pods.values() {
        if pod.phase.is_finished() {
            finished.push(&pod.key);
            continue;
        }
        if pod.host_network {
            host.push(&pod.key);
            continue;
        }
        let has = |address: &IpAddr| world.pod_at(*address).is_some_and(|at| at.key == pod.key);
        let addresses: Vec<IpAddr> = pod.addresses.iter().copied().filter(has).collect();
        if addresses.is_empty() {
            without.push(&pod.key);
            continue;
        }
        let judges = |direction| Judges::of(world, pod, direction);
        let (ingress, egress) = (judges(Direction::Ingress), judges(Direction::Egress));
        ends.push(End { pod, addresses, ingress, egress });
    }
    let mut notes = Vec::new();
    note(&mut notes, "on the node's network, not subject to policy", host);
    note(&mut notes, "finished", finished);
    note(&mut notes, "without an address of its own", without);
    (ends, notes)
}

fn note<T: Display>(notes: &mut Vec<String>, what: &str, items: impl IntoIterator<Item = T>) {
    let items = words::list(items);
    if !items.is_empty() {
        notes.push(format!("{what}: {items}"));
    }
}

/// Addresses of one family, source first.
fn address_pairs<'a>(from: &'a End<'_>, to: &'a End<'_>) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<'a> {
    let all = from.addresses.iter().flat_map(|a| to.addresses.iter().map(move |b| (*a, *b)));
    all.filter(|(a, b)| a.is_ipv4() == b.is_ipv4())
}

fn row(world: &World, from: &End<'_>, to: &End<'_>, protocol: Protocol, port: u16) -> Option<Row> {
    let (mut v4, mut v6): (Option<Verdict>, Option<Verdict>) = (None, None);
    let (mut egress, mut ingress) = (Verdict::Allow, Verdict::Allow);
    for (source, destination) in address_pairs(from, to) {
        let protocol = protocol.number();
        let query = Query { source, destination, protocol, port, from_node_process: false };
        let out = oracle::judge(world, Direction::Egress, &query, from.pod, &from.egress);
        let into = oracle::judge(world, Direction::Ingress, &query, to.pod, &to.ingress);
        let (out, into) = (Verdict::of(out.allows()), Verdict::of(into.allows()));
        (egress, ingress) = (egress.and(out), ingress.and(into));
        let family = if source.is_ipv4() { &mut v4 } else { &mut v6 };
        *family = Some(family.unwrap_or(Verdict::Allow).and(out).and(into));
    }
    let families = match (v4, v6) {
        (None, None) => return None,
        (Some(v4), Some(v6)) if v4 != v6 => Some(Families { v4, v6 }),
        (Some(_), _) | (None, Some(_)) => None,
    };
    let verdict = v4.unwrap_or(Verdict::Allow).and(v6.unwrap_or(Verdict::Allow));
    let (from, to) = (from.pod.key.clone(), to.pod.key.clone());
    Some(Row { from, to, port, protocol, verdict, ingress, egress, families })
}

impl Matrix {
    /// Writes one table for each port: a row for each source, a column for each destination.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn text(&self, out: &mut impl Write) -> fmt::Result {
        let pods: BTreeSet<&ObjectKey> = self.rows.iter().flat_map(|row| [&row.from, &row.to]).collect();
        let pods: Vec<&ObjectKey> = pods.into_iter().collect();
        for rows in self.rows.chunk_by(|a, b| (a.protocol, a.port) == (b.protocol, b.port)) {
            table(out, &pods, rows)?;
            let same =
                |row: &&ServiceRow| rows.iter().any(|r| (r.protocol, r.port) == (row.protocol, row.port));
            let through_services: Vec<ServiceRow> = self.services.iter().filter(same).cloned().collect();
            through::table(out, &through_services)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
    }
}

fn table(out: &mut impl Write, pods: &[&ObjectKey], rows: &[Row]) -> fmt::Result {
    let Some(first) = rows.first() else { return Ok(()) };
    writeln!(
        out,
        "{}/{}: row opens to column; . allowed, e denied by egress, i by ingress, x by both, ~ families differ",
        first.port, first.protocol
    )?;
    let digits = pods.len().to_string().len();
    let name_width = pods.iter().map(|key| key.to_string().len()).max().unwrap_or(0);
    write!(out, "{:>digits$} {:name_width$}", "", "")?;
    (1..=pods.len()).try_for_each(|number| write!(out, " {number:>digits$}"))?;
    writeln!(out)?;
    let mut rows = rows.iter().peekable();
    for (i, from) in pods.iter().enumerate() {
        write!(out, "{:>digits$} {:name_width$}", i + 1, from.to_string())?;
        for to in pods {
            let mark = rows.next_if(|row| row.from == **from && row.to == **to).map_or('-', mark);
            write!(out, " {mark:>digits$}")?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn mark(row: &Row) -> char {
    match (row.families, row.egress, row.ingress) {
        (Some(_), _, _) => '~',
        (None, Verdict::Allow, Verdict::Allow) => '.',
        (None, Verdict::Deny, Verdict::Allow) => 'e',
        (None, Verdict::Allow, Verdict::Deny) => 'i',
        (None, Verdict::Deny, Verdict::Deny) => 'x',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    fn world(text: &str) -> World {
        let mut world = World::new("");
        for document in text.split("---\n") {
            for read in read::objects(&serde_norway::from_str(document).unwrap()) {
                world.apply(read.delta.unwrap_or_else(|| panic!("{:?}", read.problems)));
            }
        }
        world
    }

    const PODS: &str = "
kind: List
apiVersion: v1
items:
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: b}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: c}, status: {podIPs: [{ip: 10.0.0.3}]}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: d}, status: {podIPs: [{ip: 'fd00::4'}]}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: done}, status: {podIP: 10.0.0.9, phase: Failed}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: new}}
- {apiVersion: v1, kind: Pod, metadata: {namespace: x, name: node}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.1}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: only-v4}
spec: {ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 80}]}]}
";

    #[test]
    fn families_notes_and_text() {
        let matrix = matrix(&world(PODS), &[(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
        // Four with themselves, a-b, a-c, b-c, a-d, b-d both ways; c-d have no common family. Two ports.
        assert_eq!(matrix.rows.len(), 2 * (4 + 2 * 5));
        let json = serde_json::to_value(&matrix).unwrap();
        let row = |from: &str, to: &str, port: u16| {
            let rows = json["rows"].as_array().unwrap();
            rows.iter().find(|row| row["from"] == from && row["to"] == to && row["port"] == port).unwrap()
        };
        let expected = serde_json::json!({
            "from": "x/a", "to": "x/b", "port": 80, "protocol": "TCP", "verdict": "deny", "ingress": "deny",
            "egress": "allow", "families": {"v4": "allow", "v6": "deny"}
        });
        assert_eq!(*row("x/a", "x/b", 80), expected);
        assert_eq!(row("x/a", "x/c", 80)["verdict"], "allow");
        assert_eq!(row("x/a", "x/d", 80)["verdict"], "deny");
        assert!(row("x/a", "x/d", 80).get("families").is_none());
        assert_eq!(row("x/a", "x/b", 53)["protocol"], "UDP");
        assert_eq!(row("x/c", "x/c", 53)["verdict"], "allow", "a pod reaches itself");
        assert_eq!(
            matrix.notes,
            [
                "on the node's network, not subject to policy: x/node",
                "finished: x/done",
                "without an address of its own: x/new",
                "no common address family, not judged: x/c and x/d",
            ]
        );
        let mut text = String::new();
        matrix.text(&mut text).unwrap();
        let expected = "\
80/TCP: row opens to column; . allowed, e denied by egress, i by ingress, x by both, ~ families differ
      1 2 3 4
1 x/a . ~ . i
2 x/b ~ . . i
3 x/c . . . -
4 x/d i i - .

53/UDP: ";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("x/c and x/d\n"), "{text}");
    }
}
