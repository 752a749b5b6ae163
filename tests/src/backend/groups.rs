//! Control groups as a back end: the pods of the node under test are groups of one host, whose sockets have the pods'
//! addresses; the real agent judges them.

use super::{
    objects::Change,
    run::{Backend, Places, Seen, in_order},
    station::{ALIVE, SIZE, Station, host_name},
};
use crate::{
    group::ControlGroup,
    net::{Attach, Host, Netns, Node, Topology},
    probe::{Link, Outcome, Probe, Want, verdicts},
    scenario::{
        AgentAction, Answer, Case, Expected, Loopback, Pair, Place, Port, Regroup, SessionState, State,
        Transport, Where, Workloads,
    },
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// A host, its agent, and what a scenario has put on it.
#[derive(Debug)]
pub struct Groups {
    // Groups go after the sockets and processes in them.
    station: Station,
    members: BTreeMap<String, Member>,
    /// Addresses of pods that the host has.
    own: BTreeSet<IpAddr>,
    outside: BTreeMap<String, Place>,
    workloads: Workloads,
    /// Pods whose processes are in another pod's group.
    moved: BTreeSet<String>,
    /// Whether the scenario is about control groups: then the host's own processes are asked too.
    apart: bool,
}

/// A pod: its sockets are the group's.
#[derive(Debug)]
struct Member {
    sockets: Arc<Netns>,
    place: Option<Place>,
    group: ControlGroup,
}

impl Groups {
    /// A host with a running agent and nothing else.
    pub fn start() -> Result<Self> {
        Ok(Self {
            station: Station::start(Topology::Ptp)?,
            members: BTreeMap::new(),
            own: BTreeSet::new(),
            outside: BTreeMap::new(),
            workloads: Workloads::default(),
            moved: BTreeSet::new(),
            apart: false,
        })
    }

    /// Whether the pods of a scenario may be control groups: not where it says that they are told by their addresses.
    pub(super) fn can_run(case: &Case) -> bool {
        !case.tags.iter().any(|tag| tag == "by-address")
    }

    /// What the host shows of a pair, where only its control groups are judged; `None` if it shows nothing, or what
    /// `docs/cgroup.md` says is otherwise than for pods.
    fn shows(&self, expected: &Expected, from: &Place, to: &Place) -> Option<bool> {
        if self.apart {
            return Some(expected.allow);
        }
        let transport = expected.pair.port.transport;
        let ports = matches!(transport, Transport::Tcp | Transport::Udp);
        match (from.at, to.at) {
            // A peer on the host is known by its socket, which needs ports.
            (Where::Pod, Where::Pod) => ports.then_some(expected.allow),
            (Where::Pod, Where::Outside) => Some(expected.egress.unwrap_or(expected.allow)),
            // The kernel answers an echo, without a socket of the group.
            (Where::Outside, Where::Pod) if transport == Transport::Icmp => None,
            (Where::Outside, Where::Pod) => Some(expected.ingress.unwrap_or(expected.allow)),
            // Its own host has no privilege.
            (Where::Node, _) | (_, Where::Node) | (Where::Outside, Where::Outside) => None,
        }
    }

    fn place(&mut self, state: &State) -> Result<()> {
        let places = state.places();
        let pods = places.iter().filter(|place| place.at == Where::Pod);
        let outside = places.iter().filter(|place| place.at == Where::Outside && !place.is_service());
        let outside: BTreeMap<String, Place> = outside.map(|p| (host_name(p), p.clone())).collect();
        let shared = |ip: &IpAddr| ip.is_loopback() || *ip == Node::ADDRESS4 || *ip == Node::ADDRESS6;
        let own: BTreeSet<IpAddr> =
            pods.clone().flat_map(|place| place.ips.iter().copied()).filter(|ip| !shared(ip)).collect();
        // What goes comes first: an address may move.
        for (name, member) in &mut self.members {
            let now = places.iter().find(|place| place.name == *name && place.at == Where::Pod);
            if member.place.as_ref() != now {
                self.station.responder.forget(name);
                member.place = now.cloned();
            }
        }
        for (host, place) in std::mem::take(&mut self.outside) {
            if outside.get(&host).is_none_or(|now| now.ips != place.ips) {
                self.station.responder.forget(&host);
                self.station.node.remove(&host)?;
            }
        }
        for ip in self.own.difference(&own) {
            self.station.node.remove_own(*ip)?;
        }
        for (host, place) in &outside {
            if self.station.node.host(host).is_none() {
                self.station.node.add(host, Attach::Outside, &place.ips)?;
            }
        }
        for ip in own.difference(&self.own) {
            self.station.node.add_own(*ip)?;
        }
        (self.own, self.outside) = (own, outside);
        for place in pods {
            self.member(&place.name)?.place = Some(place.clone());
        }
        Ok(())
    }

    fn member(&mut self, name: &str) -> Result<&mut Member> {
        if !self.members.contains_key(name) {
            let group = ControlGroup::new()?;
            let sockets = Arc::new(self.station.node.ns().with_sockets_of(&group)?);
            self.members.insert(name.to_owned(), Member { sockets, place: None, group });
        }
        self.members.get_mut(name).context("was inserted above")
    }

    fn write(&mut self, state: &State) -> Result<()> {
        for change in self.station.changes(state) {
            match change {
                Change::Put(id, mut object) => {
                    if let Some(name) = local_pod(&object) {
                        let path = self.member(&name)?.group.path().to_owned();
                        object["metadata"]["annotations"]["policy-agent.io/cgroup"] = path.into();
                    }
                    self.station.put(id, &object)?;
                }
                Change::Gone(id, object) => {
                    self.station.remove(&id)?;
                    if let Some(name) = local_pod(&object) {
                        self.station.responder.forget(&name);
                        self.members.remove(&name);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes every process back into its own group: one that is in another's would outlive it, and keep it.
    fn back_home(&mut self) -> Result<()> {
        for name in std::mem::take(&mut self.moved) {
            let Some(member) = self.members.get(&name) else { continue };
            let maker = member.sockets.maker().context("a workload makes its sockets itself")?;
            member.group.take(maker.process())?;
        }
        Ok(())
    }

    /// Namespace, name and addresses of a place's sockets.
    fn sockets(&self, place: &Place) -> Result<(Arc<Netns>, String)> {
        let name = match place.at {
            Where::Pod => {
                let member = self.members.get(&place.name).with_context(|| format!("no {}", place.name))?;
                return Ok((member.sockets.clone(), place.name.clone()));
            }
            Where::Node => return Ok((self.station.node.ns().clone(), place.name.clone())),
            Where::Outside => host_name(place),
        };
        let host: &Arc<Host> = self.station.node.host(&name).with_context(|| format!("no {name}"))?;
        Ok((host.ns.clone(), name))
    }

    fn question(&self, places: &Places, expected: &Expected, size: usize) -> Result<Probe> {
        let pair = &expected.pair;
        let place = |name: &str| places.get(name).with_context(|| format!("no place {name}"));
        let (from, to) = (place(&pair.from)?, place(&pair.to)?);
        let address = |place: &Place| place.ip(pair.family).with_context(|| format!("{pair}: no address"));
        let (from_ip, to_ip) = (address(from)?, address(to)?);
        // Nothing leaves a host from one of its loopback addresses, nor comes to one.
        let from_ip = match (from_ip.is_loopback(), to_ip.is_loopback()) {
            (false, true) if from.at == Where::Node => to_ip,
            (true, false) | (false, true) => own_address(to_ip),
            (true, true) | (false, false) => from_ip,
        };
        let unconnected = expected.how.unconnected && pair.port.transport == Transport::Udp;
        let ns = self.sockets(from)?.0;
        Ok(Probe { ns, from: from_ip, to: to_ip, port: pair.port, size, unconnected })
    }

    fn probe_group(
        &self,
        places: &Places,
        pairs: &[Expected],
        group: &[usize],
        size: Option<usize>,
        seen: &mut [Seen],
    ) -> Result<()> {
        let (mut asked, mut probes, mut wants) = (Vec::new(), Vec::new(), Vec::new());
        for n in group.iter().copied() {
            let expected = &pairs[n];
            let place = |name: &str| places.get(name).with_context(|| format!("no place {name}"));
            let (from, to) = (place(&expected.pair.from)?, place(&expected.pair.to)?);
            let Some(passes) = self.shows(expected, from, to) else { continue };
            probes.push(self.question(places, expected, size.unwrap_or(SIZE))?);
            wants.push(match (passes, expected.how.answer) {
                (true, Answer::Service) => Want::Answer,
                (true, Answer::Refusal) => Want::Refusal,
                (false, _) => Want::Silence,
            });
            asked.push(n);
        }
        for ((n, want), outcome) in asked.into_iter().zip(&wants).zip(verdicts(&probes, &wants)?) {
            let agrees = match (&outcome, want) {
                (Outcome::Answered(_), want) => *want == Want::Answer,
                (Outcome::Silent, want) => *want == Want::Silence,
                (Outcome::Refused(_), Want::Refusal) => outcome.is_refusal(),
                // A drop at the sender's own socket.
                (Outcome::Refused(_), Want::Silence) => outcome.is_forbidden(),
                (Outcome::Refused(why), Want::Answer) => {
                    seen[n].note = format!("refused: {why}");
                    false
                }
            };
            seen[n].allow = Some(pairs[n].allow == agrees);
            seen[n].told = Some(outcome.is_forbidden());
        }
        Ok(())
    }

    fn listen<'a>(&self, places: &Places, pairs: impl IntoIterator<Item = &'a Pair>) -> Result<()> {
        let mut ports: BTreeMap<&str, BTreeSet<Port>> = BTreeMap::new();
        for pair in pairs {
            ports.entry(&pair.to).or_default().insert(pair.port);
        }
        for (name, ports) in ports {
            let place = places.get(name).with_context(|| format!("no place {name}"))?;
            let ports: Vec<Port> = ports.into_iter().collect();
            let (ns, name) = self.sockets(place)?;
            self.station.responder.listen_at(&name, &ns, &place.ips, &ports)?;
        }
        Ok(())
    }
}

impl Backend for Groups {
    fn begin(&mut self, case: &Case) -> Result<()> {
        self.station.sessions.clear();
        self.back_home()?;
        // Whoever was at an address may not be whom this scenario has there.
        for name in self.members.keys().chain(self.outside.keys()) {
            self.station.responder.forget(name);
        }
        self.station.responder.forget("node:node-1");
        self.apart = case.workloads.is_some();
        let workloads = case.workloads.unwrap_or_default();
        if self.workloads != workloads {
            self.workloads = workloads;
            let arguments: &[&str] = match workloads.loopback {
                Loopback::Exempt => &[],
                Loopback::Judge => &["--loopback", "judge"],
            };
            self.station.restart_with(arguments)?;
        }
        Ok(())
    }

    fn log(&self) -> Option<String> {
        Some(self.station.agent.log())
    }

    fn needs_open_baseline(&self) -> bool {
        // There, places share addresses, and only the pairs that the file names can be asked.
        !self.apart
    }

    fn sync(&mut self, state: &State) -> Result<()> {
        self.place(state)?;
        self.write(state)?;
        self.station.wait()
    }

    fn agent(&mut self, action: AgentAction) -> Result<()> {
        self.station.act(action)
    }

    fn regroup(&mut self, movement: &Regroup) -> Result<()> {
        let member = |name: &str| self.members.get(name).with_context(|| format!("no workload {name}"));
        let maker = member(&movement.pod)?.sockets.maker().context("a workload makes its sockets itself")?;
        member(&movement.into)?.group.take(maker.process())?;
        self.moved.insert(movement.pod.clone());
        Ok(())
    }

    fn probe(&mut self, places: &Places, pairs: &[Expected], size: Option<usize>) -> Result<Vec<Seen>> {
        let shown = |expected: &Expected| {
            let ends = places.get(&expected.pair.from).zip(places.get(&expected.pair.to));
            ends.is_some_and(|(from, to)| self.shows(expected, from, to).is_some())
        };
        let serves = |e: &&Expected| e.how.answer == Answer::Service && shown(e);
        self.listen(places, pairs.iter().filter(serves).map(|expected| &expected.pair))?;
        let mut seen = vec![Seen::default(); pairs.len()];
        for group in in_order(pairs) {
            self.probe_group(places, pairs, &group, size, &mut seen)?;
        }
        Ok(seen)
    }

    fn open(&mut self, places: &Places, id: &str, pair: &Pair) -> Result<bool> {
        self.listen(places, [pair])?;
        let expected = Expected::open(pair.clone());
        let link = Link::open(&self.question(places, &expected, SIZE)?, ALIVE)?;
        Ok(self.station.keep(id, link))
    }

    fn is_alive(&mut self, _places: &Places, id: &str, expected: SessionState) -> Result<bool> {
        self.station.is_alive(id, expected)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Err(error) = self.back_home() {
            eprintln!("taking processes back into their groups: {error:#}");
        }
    }
}

/// Name of a pod of the node under test that has sockets of its own.
fn local_pod(object: &Value) -> Option<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let own = text("/kind") == "Pod" && text("/spec/nodeName") == State::NODE;
    let shares = object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    (own && !shares).then(|| format!("{}/{}", text("/metadata/namespace"), text("/metadata/name")))
}

/// The host's own address of the same family.
fn own_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Node::ADDRESS4.into() } else { Node::ADDRESS6.into() }
}
