//! `bench path`: what a packet costs from one pod to another through a node, with one filter after the other.

use super::{
    home::Home,
    layer::{Layer, Layers},
    meter::{Cost, Meter},
    report::{Gate, judge, median, table},
    stage::{ALLOWED_PORT, DENIED_PORT, Stage, peers, sizes},
    traffic::{Fate, Work, cost},
};
use crate::net::{Attach, Family, Host, Node, Topology};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

const ROUNDS: u32 = 15;
const TIME: Duration = Duration::from_millis(60);
/// Slot of the control group of both ends.
const GROUP: u16 = 3;
/// Rules that nftables has: its set does not grow dearer with more, only slower to load.
const NFT_PEERS: usize = 1_000;

/// Costs by layer and work, one for each round.
type Costs = BTreeMap<(Layer, Work), Vec<Cost>>;

/// Measures every layer for both families; false when a gate is broken.
pub fn path() -> Result<bool> {
    let mut gates = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut node = Node::new(Topology::Ptp)?;
        let ips: [IpAddr; 2] = match family {
            Family::V4 => ["10.244.1.10".parse()?, "10.244.1.11".parse()?],
            Family::V6 => ["fd00:10:244:1::10".parse()?, "fd00:10:244:1::11".parse()?],
        };
        let hosts =
            [node.add("client", Attach::Pod, &ips[..1])?, node.add("server", Attach::Pod, &ips[1..])?];
        let node = &node;
        let (costs, exact, unit) = node.ns().run(|| -> Result<_> {
            let meter = Meter::new()?;
            let costs = rounds(&meter, node, &hosts, ips, family)?;
            Ok((costs, meter.has_counters(), meter.unit()))
        })?;
        show(family, &costs, exact, unit);
        gates.extend(gates_of(family, &costs, exact));
    }
    Ok(judge(&gates))
}

fn rounds(
    meter: &Meter,
    node: &Node,
    hosts: &[Arc<Host>; 2],
    addresses: [IpAddr; 2],
    family: Family,
) -> Result<Costs> {
    let index = |host: &Host| Ok::<_, anyhow::Error>(node.rtnl().link(&host.host_link)?.index);
    let interfaces = [index(&hosts[0])?, index(&hosts[1])?];
    let sizes = sizes();
    let (fewest, most) = (sizes[0], sizes[sizes.len() - 1]);
    let all = peers(most, family);
    let stage = |count: usize| -> Result<Stage> {
        let mut stage = Stage::new(node.ns())?;
        for (slot, (ifindex, address)) in (1..).zip(interfaces.iter().zip(addresses)) {
            stage.add_pod(slot, *ifindex, &[address])?;
        }
        stage.add_peers(&addresses)?;
        stage.add_peers(&all[..count])?;
        Ok(stage)
    };
    let (few, mut many) = (stage(fewest)?, stage(most)?);
    let home = Home::new()?;
    many.add_group(GROUP, &home.group, &addresses)?;
    let group = &home.group;
    let mut layers = Layers { node, interfaces, addresses, peers: &all[..NFT_PEERS], few, many, group };
    let (mut costs, mut random) = (Costs::new(), Shuffle(0x9e37_79b9_7f4a_7c15));
    for round in 1..=ROUNDS {
        eprintln!("bench: {family:?}, round {round} of {ROUNDS}");
        for layer in random.order(&Layer::ALL) {
            let one = |work| measure(meter, layer, work, hosts, family);
            let seen: Vec<_> =
                layers.with(layer, || Work::ALL.into_iter().map(one).collect::<Result<Vec<_>>>())?;
            for (work, cost) in Work::ALL.into_iter().zip(seen) {
                costs.entry((layer, work)).or_default().push(cost);
            }
        }
    }
    Ok(costs)
}

/// One layer and one kind of traffic, with proof that the layer does what it is there for.
fn measure(meter: &Meter, layer: Layer, work: Work, hosts: &[Arc<Host>; 2], family: Family) -> Result<Cost> {
    let port = if work == Work::Denied { DENIED_PORT } else { ALLOWED_PORT };
    let (cost, fate) = cost(meter, work, (&hosts[0], &hosts[1]), family, port, TIME)
        .with_context(|| format!("{layer:?}, {}", work.name()))?;
    let expected = if work == Work::Denied && layer.filters() { Fate::Dropped } else { Fate::Delivered };
    ensure!(fate == expected, "{layer:?}: packets to port {port} were {fate:?}, not {expected:?}");
    Ok(cost)
}

/// One layer's cost as a multiple of another's. With counters the middle of the rounds' ratios; time alone is
/// trusted only where it is least.
fn ratio(costs: &Costs, (layer, work): (Layer, Work), (base, base_work): (Layer, Work), exact: bool) -> f64 {
    let (Some(a), Some(b)) = (costs.get(&(layer, work)), costs.get(&(base, base_work))) else {
        return f64::NAN;
    };
    if exact {
        return median(a.iter().zip(b).map(|(a, b)| a.time / b.time).collect());
    }
    least(a).time / least(b).time
}

fn least(costs: &[Cost]) -> Cost {
    costs.iter().copied().fold(Cost::MOST, Cost::least)
}

fn show(family: Family, costs: &Costs, exact: bool, unit: &str) {
    for work in Work::ALL {
        println!("\n{family:?}, {}:", work.name());
        let head = ["", unit, "to no filter", "to empty hooks", "rounds: least", "most", "instructions"];
        let row = |layer: Layer| -> Option<Vec<String>> {
            let all = costs.get(&(layer, work))?;
            let base = costs.get(&(layer.empty(), work))?;
            let mut paired: Vec<f64> = all.iter().zip(base).map(|(a, b)| a.time / b.time).collect();
            paired.sort_by(f64::total_cmp);
            let to = |base| format!("{:.3}", ratio(costs, (layer, work), (base, work), exact));
            let number = |value: Option<&f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
            let instructions = least(all).instructions.map_or_else(|| "-".to_owned(), |i| format!("{i:.0}"));
            Some(vec![
                format!("{layer:?}"),
                format!("{:.0}", least(all).time),
                to(Layer::None),
                to(layer.empty()),
                number(paired.first()),
                number(paired.last()),
                instructions,
            ])
        };
        let rows: Vec<Vec<String>> = Layer::ALL.into_iter().filter_map(row).collect();
        table(&head.map(str::to_owned), &rows);
        let differ = |one, other| (ratio(costs, (one, work), (other, work), exact) - 1.0).abs() * 100.0;
        println!(
            "  two equal layers differ by {:.1} %, at control groups by {:.1} %: less than twice that is no difference",
            differ(Layer::EmptyAgain, Layer::Empty),
            differ(Layer::EmptyGroupAgain, Layer::EmptyGroup)
        );
    }
}

/// T1, T3 and T10.
fn gates_of(family: Family, costs: &Costs, exact: bool) -> Vec<Gate> {
    let gate =
        |id, what: &str, value, limit| Gate { id, what: format!("{family:?} {what}"), value, limit, exact };
    let to = |layer, work, base| ratio(costs, (layer, work), (base, work), exact);
    let mut gates = Vec::new();
    for (work, name) in [(Work::Udp, "UDP"), (Work::TcpRoundTrip, "TCP")] {
        let many = to(Layer::OursMany, work, Layer::Empty);
        gates.push(gate("T1", &format!("{name}, known flow, both hooks, to empty TCX"), many, 1.08));
        let flat = to(Layer::OursMany, work, Layer::OursFew);
        gates.push(gate("T3", &format!("{name}, most peers to ten peers"), flat, 1.05));
    }
    let denied = ratio(costs, (Layer::OursMany, Work::Denied), (Layer::OursMany, Work::Udp), exact);
    gates.push(gate("T10", "UDP, denied to forwarded, events held back", denied, 0.85));
    gates
}

/// A small generator: the order of layers must not be the same in all rounds, nothing more.
struct Shuffle(u64);

impl Shuffle {
    fn order<T: Copy>(&mut self, items: &[T]) -> Vec<T> {
        let mut items = items.to_vec();
        for last in (1..items.len()).rev() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            items.swap(last, (self.0 % (last as u64 + 1)) as usize);
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_differ_and_lose_nothing() {
        let mut shuffle = Shuffle(1);
        let orders: Vec<Vec<Layer>> = (0..10).map(|_| shuffle.order(&Layer::ALL)).collect();
        assert!(orders.windows(2).any(|pair| pair[0] != pair[1]));
        for mut order in orders {
            order.sort();
            assert_eq!(order, Layer::ALL);
        }
    }

    #[test]
    fn time_is_compared_where_it_is_least() {
        let cost = |time| Cost { time, instructions: None };
        let mut costs = Costs::new();
        costs.insert((Layer::Empty, Work::Udp), vec![cost(100.0), cost(900.0)]);
        costs.insert((Layer::OursMany, Work::Udp), vec![cost(500.0), cost(110.0)]);
        let (ours, empty) = ((Layer::OursMany, Work::Udp), (Layer::Empty, Work::Udp));
        assert!((ratio(&costs, ours, empty, false) - 1.1).abs() < 1e-9);
    }
}
