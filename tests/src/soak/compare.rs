//! One scenario on all that judge: after each step the evaluator's answers against the tables' and the programs'.

use crate::{
    backend::{Backend, Kernel, Memory, Objects, Places, deltas, new_world, query},
    net::Family,
    scenario::{Case, Expected, How, Pair, Place, Port, State, Transport, Where},
};
use anyhow::Result;
use policy_common::abi::Direction;
use policy_engine::{
    limits::Limits,
    oracle,
    testing::{node::SimNode, rng::Rng, samples::Sample},
    world::World,
};
use std::{collections::BTreeSet, net::IpAddr};

/// Ports that are asked about: those that policies and pods name, and their neighbours.
const PORTS: [u16; 14] = [0, 1, 2, 52, 53, 54, 79, 80, 81, 82, 443, 1080, 8080, 65_535];
const PROTOCOLS: [u8; 5] = [6, 6, 17, 132, 1];

/// How much is asked after each step.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Questions to the compiled tables.
    pub samples: usize,
    /// Of those, asked again after every single write of a plan.
    pub during: usize,
    /// Conversations through the hooks in memory.
    pub conversations: usize,
    /// Conversations through the kernel's programs.
    pub kernel: usize,
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Answers of the compiled tables.
    pub tables: u64,
    /// Conversations in memory.
    pub memory: u64,
    /// Conversations through the kernel's programs.
    pub kernel: u64,
    /// Plans, each checked after every write.
    pub plans: u64,
}

impl Compared {
    /// Everything that was compared with the evaluator.
    pub fn pairs(&self) -> u64 {
        self.tables + self.memory + self.kernel
    }
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.tables += other.tables;
        self.memory += other.memory;
        self.kernel += other.kernel;
        self.plans += other.plans;
    }
}

/// Somebody disagrees with the evaluator.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Number of the step.
    pub step: usize,
    /// In words.
    pub what: String,
    /// The connection, where it is one.
    pub ends: Option<Ends>,
}

/// A connection by its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Who opens it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Protocol and port.
    pub port: Port,
}

/// Who judges, beside the evaluator.
pub struct Judges<'a> {
    /// The kernel's programs, if they take part.
    pub kernel: Option<&'a mut Kernel>,
    /// What the compiler sees of a world: the world. A test of this module has it see something else.
    pub seen: fn(&World) -> World,
}

/// Runs all steps. An error is a scenario that cannot run; `Ok(Err(_))` is what was looked for.
pub fn compare(
    case: &Case,
    effort: Effort,
    rng: &mut Rng,
    judges: &mut Judges<'_>,
) -> Result<std::result::Result<Compared, Difference>> {
    let mut state = State::new(case)?;
    let mut objects = Objects::default();
    let mut world = new_world();
    let mut node = SimNode::new(Limits { endpoints: 64, rows: 128, ..Limits::default() });
    let mut memory = Memory::new();
    if let Some(kernel) = &mut judges.kernel {
        kernel.begin(case)?;
    }
    let mut sum = Compared::default();
    for (step, actions) in case.steps.iter().enumerate() {
        for action in &actions.actions {
            state.act(action)?;
        }
        for delta in deltas(&mut objects, &state) {
            world.apply(delta);
        }
        let told = |what: String| Difference { step, what, ends: None };
        if let Err(found) = tables(&mut node, &world, effort, rng, judges.seen, &mut sum) {
            return Ok(Err(Difference { step, ..found }));
        }
        let pairs = pairs(rng, &state, &world, effort.conversations.max(effort.kernel));
        let places: Places = state.places().into_iter().map(|place| (place.name.clone(), place)).collect();
        if effort.conversations > 0 {
            let asked = &pairs[..pairs.len().min(effort.conversations)];
            if let Err(error) = memory.sync(&state) {
                return Ok(Err(told(format!("in memory: {error:#}"))));
            }
            sum.memory += asked.len() as u64;
            if let Some(found) = converse(&mut memory, "in memory", &places, asked)? {
                return Ok(Err(Difference { step, ..found }));
            }
        }
        if let Some(kernel) = &mut judges.kernel
            && effort.kernel > 0
        {
            let asked = &pairs[..pairs.len().min(effort.kernel)];
            kernel.sync(&state)?;
            sum.kernel += asked.len() as u64;
            if let Some(found) = converse(*kernel, "in the kernel", &places, asked)? {
                return Ok(Err(Difference { step, ..found }));
            }
        }
    }
    Ok(Ok(sum))
}

/// The compiled tables: after every write of the plan each verdict is the old or the new world's, at its end the new.
fn tables(
    node: &mut SimNode,
    world: &World,
    effort: Effort,
    rng: &mut Rng,
    seen: fn(&World) -> World,
    sum: &mut Compared,
) -> std::result::Result<(), Difference> {
    let told = |what: String| Difference { step: 0, what, ends: None };
    let given_up = node.discover(world).map_err(told)?;
    let asked = questions(rng, world, node, effort.samples);
    let during = &asked[..asked.len().min(effort.during)];
    let planned = node.update(&seen(world), during).map_err(told)?;
    if planned.busy.is_some() {
        node.settle(during).map_err(told)?;
        node.update(&seen(world), during).map_err(told)?;
    }
    sum.plans += 1;
    if !planned.refusals.is_empty() {
        return Err(told(format!("refused: {:?}", planned.refusals)));
    }
    if let Err(what) = node.check(world, &asked) {
        let one = |sample: &&Sample| node.check(world, std::slice::from_ref(*sample)).is_err();
        return Err(Difference {
            step: 0,
            what,
            ends: asked.iter().find(one).and_then(|s| ends(node, world, s)),
        });
    }
    sum.tables += asked.len() as u64;
    for slot in given_up {
        node.unhook(slot);
    }
    if rng.percent(60) {
        // Sometimes the grace period of the last plan is not over yet.
        let late = rng.below(3) as u64;
        node.collect_up_to(node.planner.tables.number().saturating_sub(late), during).map_err(told)?;
    }
    Ok(())
}

fn questions(rng: &mut Rng, world: &World, node: &SimNode, count: usize) -> Vec<Sample> {
    let mut remotes: BTreeSet<IpAddr> = world.pod_addresses().map(|(address, _)| address).collect();
    remotes.extend(world.frontends().map(|(address, _)| address));
    let strange = ["10.99.0.13", "10.99.0.14", "fd99::e", "198.51.100.9", "2001:db8::9", "255.255.255.254"];
    let edges = ["127.255.255.254", "128.0.0.1", "192.0.2.77", "fd00:192::77", "10.96.0.2", "0.0.0.1"];
    remotes.extend(strange.iter().chain(&edges).filter_map(|text| text.parse::<IpAddr>().ok()));
    let remotes: Vec<IpAddr> = remotes.into_iter().collect();
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        let (Some(endpoint), Some(remote)) = (rng.pick(&node.endpoints), rng.pick(&remotes)) else { break };
        out.push(Sample {
            slot: endpoint.slot,
            direction: rng.one([Direction::Ingress, Direction::Egress]),
            remote: *remote,
            protocol: rng.one(PROTOCOLS),
            port: rng.one(PORTS),
        });
    }
    out
}

fn ends(node: &SimNode, world: &World, sample: &Sample) -> Option<Ends> {
    let endpoint = node.endpoints.iter().find(|endpoint| endpoint.slot == sample.slot)?;
    let pod = world.pods.get(&endpoint.pod)?;
    let own = |ip: &&IpAddr| world.pod_at(**ip).is_some_and(|p| p.key == pod.key);
    let same = |ip: &&IpAddr| ip.is_ipv4() == sample.remote.is_ipv4();
    let address = pod.addresses.iter().filter(own).find(same).or_else(|| pod.addresses.iter().find(own))?;
    let (source, destination) = match sample.direction {
        Direction::Ingress => (sample.remote, *address),
        Direction::Egress => (*address, sample.remote),
    };
    Some(Ends { source, destination, port: named(sample.protocol, sample.port) })
}

fn named(protocol: u8, number: u16) -> Port {
    let transport = match protocol {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        132 => Transport::Sctp,
        1 | 58 => return Port { transport: Transport::Icmp, number: 0 },
        other => return Port { transport: Transport::Other(other), number: 0 },
    };
    Port { transport, number }
}

/// Random pairs of places, with the evaluator's verdict. Not of places whose address is somebody else's too.
fn pairs(rng: &mut Rng, state: &State, world: &World, count: usize) -> Vec<Expected> {
    let all = state.places();
    let places: Vec<&Place> = all.iter().filter(|place| is_sole(place, world)).collect();
    let mut out = Vec::new();
    for _ in 0..count * 2 {
        if out.len() == count {
            break;
        }
        let (Some(from), Some(to)) = (rng.pick(&places), rng.pick(&places)) else { break };
        let family = rng.one([Family::V4, Family::V6]);
        let port = named(rng.one(PROTOCOLS), rng.one(PORTS));
        let elsewhere = |place: &Place| place.at != Where::Pod;
        let (Some(_), Some(to_ip)) = (from.ip(family), to.ip(family)) else { continue };
        // Traffic to a Service is translated on its way; a pod's own never leaves it.
        if from.name == to.name || elsewhere(from) && elsewhere(to) || world.is_frontend(to_ip) {
            continue;
        }
        if port.number == 0 && port.transport != Transport::Icmp {
            continue;
        }
        out.extend(judged(from, to, port, family, world));
    }
    out
}

fn is_sole(place: &Place, world: &World) -> bool {
    place.ips.iter().all(|ip| {
        let of_pod = world.pod_at(*ip).map(|pod| pod.key.to_string());
        let its = match place.at {
            Where::Pod | Where::Outside => {
                of_pod.is_none_or(|pod| pod == place.name) && !world.is_host_address(*ip)
            }
            Where::Node => world.is_host_address(*ip),
        };
        its && !world.is_frontend(*ip)
    })
}

fn judged(from: &Place, to: &Place, port: Port, family: Family, world: &World) -> Option<Expected> {
    let pair = Pair { from: from.name.clone(), to: to.name.clone(), port, family };
    let places: Places = [from, to].into_iter().map(|place| (place.name.clone(), place.clone())).collect();
    let evaluation = oracle::verdicts(world, &query(&places, &pair).ok()?);
    Some(Expected {
        pair,
        allow: evaluation.allows(),
        ingress: Some(evaluation.ingress.allows()),
        egress: Some(evaluation.egress.allows()),
        told: None,
        how: How::default(),
    })
}

fn converse(
    backend: &mut dyn Backend,
    name: &str,
    places: &Places,
    asked: &[Expected],
) -> Result<Option<Difference>> {
    let seen = backend.probe(places, asked, None)?;
    for (expected, seen) in asked.iter().zip(&seen) {
        let differs = |got: Option<bool>, want: Option<bool>| got.is_some() && want.is_some() && got != want;
        if !differs(seen.allow, Some(expected.allow))
            && !differs(seen.ingress, expected.ingress)
            && !differs(seen.egress, expected.egress)
        {
            continue;
        }
        let address = |name: &str| places.get(name).and_then(|place| place.ip(expected.pair.family));
        let ends = address(&expected.pair.from)
            .zip(address(&expected.pair.to))
            .map(|(source, destination)| Ends { source, destination, port: expected.pair.port });
        return Ok(Some(Difference { step: 0, what: format!("{name}: {expected:?}, seen {seen:?}"), ends }));
    }
    Ok(None)
}
