//! What pods reach through Services: a row for each pod and each Service that has the port.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::{End, Verdict, as_text};
use crate::model::{ObjectKey, Protocol};
use crate::oracle;
use crate::services;
use crate::verdict::Query;
use crate::world::World;

/// A pod and a Service on one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// Who opens.
    #[serde(serialize_with = "as_text")]
    pub from: ObjectKey,
    /// The Service; written as `svc/namespace/name`.
    #[serde(serialize_with = "as_service")]
    pub to: ObjectKey,
    /// Port of the Service.
    pub port: u16,
    /// Protocol.
    #[serde(serialize_with = "as_text")]
    pub protocol: Protocol,
    /// All backends together.
    pub verdict: Through,
    /// Where the Service leads, each judged by itself.
    pub backends: Vec<BackendRow>,
}

/// What becomes of a connection through a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Through {
    /// It may open, whatever backend is chosen.
    Allow,
    /// It may not.
    Deny,
    /// It depends on the backend.
    Mixed,
    /// There is no backend.
    NoBackend,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Both sides together.
    pub verdict: Verdict,
}

fn as_service<S: Serializer>(key: &ObjectKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("svc/{key}"))
}

/// Rows of all pods and all Services with the port.
pub(super) fn rows(world: &World, ends: &[End<'_>], protocol: Protocol, port: u16) -> Vec<ServiceRow> {
    let services = world.services.values().filter_map(|s| Some((s, s.port(protocol, port)?)));
    let services: Vec<_> = services.map(|(s, p)| (s, services::reached(world, s, p))).collect();
    let mut rows = Vec::new();
    for from in ends {
        for (service, reached) in &services {
            let backends: Vec<BackendRow> =
                reached.iter().filter_map(|backend| judge(world, from, protocol, *backend)).collect();
            let allowed = backends.iter().filter(|backend| backend.verdict == Verdict::Allow).count();
            let verdict = match (allowed, backends.len()) {
                (_, 0) => Through::NoBackend,
                (0, _) => Through::Deny,
                (allowed, all) if allowed == all => Through::Allow,
                (_, _) => Through::Mixed,
            };
            let (from, to) = (from.pod.key.clone(), service.key.clone());
            rows.push(ServiceRow { from, to, port, protocol, verdict, backends });
        }
    }
    rows
}

/// `None`: the pod has no address of the family.
fn judge(world: &World, from: &End<'_>, protocol: Protocol, backend: (IpAddr, u16)) -> Option<BackendRow> {
    let (destination, port) = backend;
    let mut verdict = None;
    for source in from.addresses.iter().copied().filter(|a| a.is_ipv4() == destination.is_ipv4()) {
        let protocol = protocol.number();
        let query = Query { source, destination, protocol, port, from_node_process: false };
        let allows = Verdict::of(oracle::through_service(world, &query).allows());
        verdict = Some(verdict.unwrap_or(Verdict::Allow).and(allows));
    }
    Some(BackendRow { address: destination, port, verdict: verdict? })
}

/// Writes one table: a row for each source, a column for each Service.
pub(super) fn table(out: &mut impl Write, rows: &[ServiceRow]) -> fmt::Result {
    let Some(first) = rows.first() else { return Ok(()) };
    let services: BTreeSet<&ObjectKey> = rows.iter().map(|row| &row.to).collect();
    writeln!(
        out,
        "{}/{} of Services: . allowed, x denied, ~ depends on the backend, 0 no backend",
        first.port, first.protocol
    )?;
    let digits = services.len().to_string().len();
    for (number, service) in (1..).zip(&services) {
        writeln!(out, "{number:>digits$} svc/{service}")?;
    }
    let width = rows.iter().map(|row| row.from.to_string().len()).max().unwrap_or(0);
    write!(out, "{:width$}", "")?;
    (1..=services.len()).try_for_each(|number| write!(out, " {number:>digits$}"))?;
    writeln!(out)?;
    for row in rows.chunk_by(|a, b| a.from == b.from) {
        write!(out, "{:width$}", row.first().map(|row| row.from.to_string()).unwrap_or_default())?;
        for cell in row {
            let mark = match cell.verdict {
                Through::Allow => '.',
                Through::Deny => 'x',
                Through::Mixed => '~',
                Through::NoBackend => '0',
            };
            write!(out, " {mark:>digits$}")?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::matrix;
    use super::*;
    use crate::read;

    #[test]
    fn pods_are_judged_through_services_too() {
        let pod = |name: &str, ip: &str, port: u16| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": name,
                "labels": {"app": &name[..1], "name": name}}, "status": {"podIP": ip},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]}})
        };
        let service = |name: &str, app: &str| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": name},
                "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": "http"}]}})
        };
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchLabels": {"name": "b1"}}}]}]}});
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "x", "name": "s", "labels": {"kubernetes.io/service-name": "given"}},
            "ports": [{"port": 1}], "endpoints": [{"addresses": ["10.0.0.2"]}]});
        let mut world = World::new("");
        let objects = [
            pod("a", "10.0.0.1", 8080),
            pod("b1", "10.0.0.2", 8080),
            pod("b2", "10.0.0.3", 8081),
            service("mixed", "b"),
            service("none", "c"),
            service("given", "c"),
            policy,
            slice,
        ];
        for object in objects {
            world.apply(read::object(&object).delta.unwrap());
        }
        let matrix = matrix(&world, &[(Protocol::Tcp, 80), (Protocol::Tcp, 81)]);
        let mut text = String::new();
        matrix.text(&mut text).unwrap();
        let wanted = "\
80/TCP of Services: . allowed, x denied, ~ depends on the backend, 0 no backend
1 svc/x/given
2 svc/x/mixed
3 svc/x/none
     1 2 3
x/a  . ~ 0
x/b1 . . 0
x/b2 . . 0

";
        assert!(text.contains(wanted) && !text.contains("81/TCP of Services"), "{text}");
        let json = serde_json::to_value(&matrix).unwrap();
        let row = &json["services"][1];
        assert_eq!(
            (&row["from"], &row["to"], &row["verdict"]),
            (&json!("x/a"), &json!("svc/x/mixed"), &json!("mixed"))
        );
        assert_eq!(row["backends"][1], json!({"address": "10.0.0.3", "port": 8081, "verdict": "deny"}));
    }
}
