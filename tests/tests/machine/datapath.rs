//! The maps of the kernel: created, adopted, written by plans, read back, given up.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use policy_agent::datapath::spec::MapId;
use policy_agent::datapath::{
    Config, Endpoint, Error, Executor, LiveEndpoint, LoadReport, OBJECT, Result, bpf, load, open_maps,
};
use policy_common::abi::{
    Direction, EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, ROW_OPEN, RuleSet, action,
    endpoint_config, limits, meta_words,
};
use policy_engine::address;
use policy_engine::plan::{Op, Plan};
use policy_tests::net::Netns;
use policy_tests::pins::PinDir;

struct Place {
    dir: PinDir,
}

#[derive(Debug)]
struct Maps {
    executor: Executor,
    report: LoadReport,
}

impl Place {
    fn new() -> Self {
        let ns = Arc::new(Netns::new().unwrap());
        Self { dir: PinDir::new(&ns).unwrap() }
    }

    /// The maps alone: programs take their time to be verified.
    fn open(&self) -> Result<Maps> {
        let (executor, _ring, report) = open_maps(self.dir.path())?;
        Ok(Maps { executor, report })
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(slot: u16, ifindex: u32, addresses: &[&str]) -> Endpoint {
    Endpoint {
        slot,
        id: 1000 + u32::from(slot),
        ifindex,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        config: endpoint_config::ANTI_SPOOF,
        pickup: Duration::ZERO,
    }
}

fn host(address: &str, class: u16) -> HostWord {
    HostWord { check: address::check(ip(address)), class, flags: 0 }
}

/// Something of every kind.
fn plan(number: u64) -> Plan {
    let allow = Interval { low: 80, high: 90, outcome: Outcome::new(action::ALLOW, 7) };
    let set = RuleSet { base: 5, n_tcp: 1, n_udp: 1, crc: 99, ..RuleSet::default() };
    let row = EndpointWord { epoch: 2, ingress_row: 3, egress_row: ROW_OPEN };
    let ops = vec![
        Op::Intervals { base: 5, values: vec![allow, allow] },
        Op::RuleSet { id: 9, value: set },
        Op::Row { row: 3, cells: vec![0, 9, 0, 9] },
        Op::Cell { row: 3, class: limits::CLASSES as u16 - 1, rule_set: 9 },
        Op::HostWord { slot: 1, word: host("10.0.0.1", 1) },
        Op::HostInsert { address: ip("10.0.0.1"), slot: 1 },
        Op::HostWord { slot: 2, word: host("2001:db8::1", 3) },
        Op::HostInsert { address: ip("2001:db8::1"), slot: 2 },
        Op::HostWord { slot: 3, word: HostWord { check: 0, class: 1, flags: 0 } },
        Op::PrefixInsert { prefix: "10.0.0.0/8".parse().unwrap(), slot: 3 },
        Op::HostWord { slot: 4, word: HostWord { check: 0, class: 2, flags: 0 } },
        Op::PrefixInsert { prefix: "2001:db8::/32".parse().unwrap(), slot: 4 },
        Op::Endpoint { slot: 4, word: row },
    ];
    Plan { number, ops }
}

#[test]
fn a_plan_is_read_back_as_it_was_written_and_the_next_agent_finds_it() {
    let place = Place::new();
    let mut first = place.open().unwrap();
    assert_eq!(first.report.created.len(), MapId::ALL.len());
    assert!(first.report.adopted.is_empty());
    first.executor.create_endpoint(&endpoint(4, 17, &["10.0.0.9", "2001:db8::9"])).unwrap();
    first.executor.apply(&plan(41)).unwrap();
    let seen = first.executor.dump().unwrap();
    assert_eq!(seen.number, 41);
    assert_eq!(
        seen.hosts,
        [(ip("10.0.0.1"), 1, host("10.0.0.1", 1)), (ip("2001:db8::1"), 2, host("2001:db8::1", 3))]
    );
    let prefixes: Vec<_> = seen.prefixes.iter().map(|(p, slot, w)| (p.to_string(), *slot, w.class)).collect();
    assert_eq!(prefixes, [("10.0.0.0/8".to_owned(), 3, 1), ("2001:db8::/32".to_owned(), 4, 2)]);
    let (row, cells) = &seen.rows[0];
    assert_eq!((*row, cells.len(), &cells[..5]), (3, limits::CLASSES as usize, &[0, 9, 0, 9, 0][..]));
    assert_eq!(cells.iter().filter(|c| **c == 9).count(), 3);
    assert_eq!(seen.sets.len(), 1);
    assert_eq!((seen.sets[0].0, seen.sets[0].1.base, seen.sets[0].1.crc), (9, 5, 99));
    assert_eq!(seen.intervals.iter().map(|(i, v)| (*i, v.low)).collect::<Vec<_>>(), [(5, 80), (6, 80)]);
    assert_eq!(seen.endpoints, [(4, EndpointWord { epoch: 2, ingress_row: 3, egress_row: ROW_OPEN })]);

    drop(first);
    let mut second = place.open().unwrap();
    assert_eq!(second.report.adopted.len(), MapId::ALL.len());
    assert_eq!(second.executor.dump().unwrap(), seen);

    // A shorter row leaves nothing of the longer one, a removed key is gone, the same insert again is fine.
    let ops = vec![
        Op::Endpoint {
            slot: 4,
            word: EndpointWord { epoch: 3, ingress_row: ROW_CLOSED, egress_row: ROW_OPEN },
        },
        Op::Row { row: 3, cells: vec![0, 9] },
        Op::Endpoint { slot: 4, word: EndpointWord { epoch: 4, ingress_row: 3, egress_row: ROW_OPEN } },
        Op::HostRemove { address: ip("10.0.0.1") },
        Op::HostRemove { address: ip("10.0.0.1") },
        Op::PrefixRemove { prefix: "10.0.0.0/8".parse().unwrap() },
        Op::HostInsert { address: ip("2001:db8::1"), slot: 2 },
    ];
    second.executor.apply(&Plan { number: 42, ops }).unwrap();
    let seen = second.executor.dump().unwrap();
    assert_eq!((seen.hosts.len(), seen.prefixes.len(), seen.number), (1, 1, 42));
    assert_eq!(seen.rows, [(3, vec![0, 9])]);
}

#[test]
fn a_plan_that_does_not_fit_writes_nothing() {
    let place = Place::new();
    let mut d = place.open().unwrap();
    let mut bad = plan(7);
    bad.ops.push(Op::HostInsert { address: ip("10.0.0.2"), slot: limits::HOST_INFO });
    let e = d.executor.apply(&bad).unwrap_err();
    assert!(matches!(e, Error::Plan { number: 7, index: 13, .. }), "{e}");
    assert!(d.executor.dump().unwrap().hosts.is_empty(), "nothing was written");
    assert_eq!(d.executor.meta(meta_words::PLAN).unwrap(), 0);
    // What only the kernel can know stops the plan where it stands.
    d.executor.apply(&plan(8)).unwrap();
    let again = Plan { number: 9, ops: vec![Op::HostInsert { address: ip("10.0.0.1"), slot: 50 }] };
    let e = d.executor.apply(&again).unwrap_err();
    assert!(
        matches!(&e, Error::Plan { problem, .. } if matches!(**problem, Error::Occupied { found: 1, .. })),
        "{e}"
    );
    assert_eq!(d.executor.meta(meta_words::PLAN).unwrap(), 8);
}

#[test]
fn a_full_table_is_an_error_and_what_is_in_it_stays() {
    let place = Place::new();
    let mut d = place.open().unwrap();
    let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
    let insert = |n: u32| Op::HostInsert { address: address(n), slot: n + 1 };
    let all = Plan { number: 1, ops: (0..limits::HOSTS).map(insert).collect() };
    d.executor.apply(&all).unwrap();
    let one_more = Plan { number: 2, ops: vec![insert(limits::HOSTS)] };
    assert!(matches!(d.executor.apply(&one_more), Err(Error::Plan { number: 2, index: 0, .. })));
    assert_eq!(d.executor.dump().unwrap().hosts.len(), limits::HOSTS as usize);
}

#[test]
fn the_life_of_an_endpoint() {
    let place = Place::new();
    let d = place.open().unwrap();
    let x = &d.executor;
    let made = endpoint(7, 33, &["10.0.0.9", "2001:db8::9", "fe80::9", "10.0.0.10"]);
    x.create_endpoint(&made).unwrap();
    x.set_interface(33, 7).unwrap();
    let closed = EndpointWord { epoch: 1, ingress_row: ROW_CLOSED, egress_row: ROW_CLOSED };
    let expected = LiveEndpoint {
        group: None,
        slot: 7,
        id: 1007,
        ifindex: 33,
        addresses: ["10.0.0.9", "2001:db8::9", "10.0.0.10", "fe80::9"].map(ip).to_vec(),
        config: endpoint_config::ANTI_SPOOF,
        generation: 1,
        word: closed,
    };
    assert_eq!(x.endpoints().unwrap(), [expected]);
    assert_eq!(x.interface(33).unwrap(), Some(7));
    assert_eq!(x.flow_counts(7).unwrap(), (0, 0));
    assert!(matches!(x.create_endpoint(&made), Err(Error::Endpoint { slot: 7, .. })), "the slot is taken");
    x.set_addresses(7, &[ip("10.0.0.11"), ip("10.0.0.10")]).unwrap();
    x.set_config(7, endpoint_config::KEEP).unwrap();
    assert!(x.map(MapId::Flows6).get(&7u32.to_ne_bytes()).unwrap().is_some(), "made with its address");
    let changed = &x.endpoints().unwrap()[0];
    assert_eq!((changed.addresses.as_slice(), changed.config), (&[ip("10.0.0.11"), ip("10.0.0.10")][..], 8));

    let retirement = x.remove_endpoints(&[7]).unwrap();
    assert_eq!(x.interface(33).unwrap(), None);
    assert_eq!(
        x.endpoints().unwrap()[0].word,
        EndpointWord { epoch: 2, ..closed },
        "closed, and still taken"
    );
    assert_eq!(retirement.run().unwrap(), [7]);
    assert!(x.endpoints().unwrap().is_empty());
    x.create_endpoint(&endpoint(7, 34, &["10.0.0.12"])).unwrap();
    let again = &x.endpoints().unwrap()[0];
    assert_eq!((again.generation, again.addresses.as_slice()), (2, &[ip("10.0.0.12")][..]));
}

#[test]
fn wrong_endpoints_are_refused() {
    let place = Place::new();
    let d = place.open().unwrap();
    for (slot, id, ifindex) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (limits::ENDPOINTS as u16, 1, 1)] {
        let bad = Endpoint { slot, id, ifindex, ..endpoint(1, 1, &["10.0.0.9"]) };
        assert!(matches!(d.executor.create_endpoint(&bad), Err(Error::Endpoint { .. })), "{bad:?}");
    }
    let mut crowded = endpoint(3, 3, &["10.0.0.9"]);
    crowded.addresses = (0..255u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    assert!(matches!(d.executor.create_endpoint(&crowded), Err(Error::Endpoint { slot: 3, .. })));
    crowded.addresses.pop();
    d.executor.create_endpoint(&crowded).unwrap();
    assert_eq!(d.executor.endpoints().unwrap()[0].addresses.len(), 254);
}

#[test]
fn flows_of_an_address_go_with_it() {
    let place = Place::new();
    let d = place.open().unwrap();
    let flows = |id: MapId| d.executor.map(id).get(&3u32.to_ne_bytes()).unwrap();
    let link_local = ["10.0.0.9", "fe80::9"];
    d.executor.create_endpoint(&endpoint(3, 3, &link_local)).unwrap();
    assert_eq!(flows(MapId::Flows6), None, "a link-local address alone needs no flow map");
    let (four, all) = (flows(MapId::Flows4), ["10.0.0.9", "fe80::9", "2001:db8::9"].map(ip));
    d.executor.set_addresses(3, &all).unwrap();
    assert!(
        flows(MapId::Flows6).is_some() && flows(MapId::Flows4) == four,
        "only the new family's map is made"
    );
    let six = flows(MapId::Flows6);
    d.executor.set_addresses(3, &["10.0.0.8", "fe80::9", "2001:db8::9"].map(ip)).unwrap();
    assert!(flows(MapId::Flows4) != four && flows(MapId::Flows6) == six, "the flows were another address's");
}

#[test]
fn the_system_is_looked_at_before_anything_is_changed() {
    let place = Place::new();
    let facts = policy_agent::preflight::check(place.dir.path()).unwrap();
    assert_eq!(facts.tcx, policy_agent::datapath::tcx_supported());
    assert!(!place.dir.path().exists());
}

#[test]
fn interfaces_that_share_a_place_are_told_apart() {
    let place = Place::new();
    let d = place.open().unwrap();
    let (first, second) = (12, 12 + limits::INTERFACES);
    d.executor.set_interface(first, 1).unwrap();
    d.executor.set_interface(second, 2).unwrap();
    let both = || (d.executor.interface(first).unwrap(), d.executor.interface(second).unwrap());
    assert_eq!(both(), (Some(1), Some(2)));
    d.executor.clear_interface(first).unwrap();
    assert_eq!(both(), (None, Some(2)));
    d.executor.clear_interface(second).unwrap();
    d.executor.clear_interface(second).unwrap();
    assert_eq!(both(), (None, None));
}

#[test]
fn flow_maps_in_store_are_for_free_slots_only_and_are_empty() {
    let place = Place::new();
    let d = place.open().unwrap();
    let x = &d.executor;
    let held = |slot: u16| [MapId::Flows4, MapId::Flows6].map(|id| inner_id(x, id, slot));
    x.create_endpoint(&endpoint(1, 33, &["10.0.0.9"])).unwrap();
    let first = held(1);
    let maker = x.spare_maker().unwrap();
    maker.make(&[1, 2], false).unwrap();
    maker.make(&[3], true).unwrap();
    maker.make(&[2, 3], true).unwrap();
    assert_eq!(x.spare_slots(), [2, 3].into());
    assert_eq!(held(1), first, "an endpoint's flows are left alone");
    let [two, three] = [held(2), held(3)];
    assert!(two[0].is_some() && two[1].is_none() && three.iter().all(Option::is_some));
    x.create_endpoint(&endpoint(2, 34, &["10.0.0.10", "2001:db8::10"])).unwrap();
    x.create_endpoint(&endpoint(3, 35, &["10.0.0.11"])).unwrap();
    assert_eq!((held(2)[0], held(3)), (two[0], three), "what was in store is used");
    assert!(held(2)[1].is_some(), "and what was not is made");
    assert!(x.spare_slots().is_empty());
    maker.make(&[2, 3], true).unwrap();
    assert_eq!(held(3), three);
    x.remove_endpoints(&[2]).unwrap().run().unwrap();
    assert_eq!(held(2), [None; 2]);
    maker.make(&[2], false).unwrap();
    assert_eq!(x.spare_slots(), [2].into());
    // The next agent does not trust what it finds.
    let next = place.open().unwrap();
    assert!(next.executor.spare_slots().is_empty());
    next.executor.spare_maker().unwrap().clear().unwrap();
    assert_eq!((held(2), held(1), held(3)), ([None; 2], first, three));
}

/// Id of a slot's flow map.
fn inner_id(x: &Executor, id: MapId, slot: u16) -> Option<u32> {
    let value = x.map(id).get(&u32::from(slot).to_ne_bytes()).unwrap();
    value.map(|id| u32::from_ne_bytes(id.try_into().unwrap()))
}

#[test]
fn a_pick_up_window_ends_in_the_kernels_own_time() {
    let place = Place::new();
    let d = place.open().unwrap();
    let hertz = d.executor.meta(meta_words::HZ).unwrap();
    let window = Duration::from_secs(60);
    let before = d.executor.tick().unwrap();
    d.executor.create_endpoint(&Endpoint { pickup: window, ..endpoint(2, 5, &["10.0.0.9"]) }).unwrap();
    let after = d.executor.tick().unwrap();
    let key = 2u32.to_ne_bytes();
    let value = d.executor.map(MapId::Ep).get(&key).unwrap().unwrap();
    let until = u32::from_ne_bytes(value[28..32].try_into().unwrap());
    let ticks = (60 * hertz / 256) as u32;
    assert!((before + ticks..=after + ticks + 1).contains(&until), "{before} {after} {ticks} {until}");
    d.executor.set_pickup(2, Duration::ZERO).unwrap();
    let value = d.executor.map(MapId::Ep).get(&key).unwrap().unwrap();
    assert_eq!((&value[24..28], &value[28..32]), (&[10, 0, 0, 9][..], &[0; 4][..]), "the address stays");
}

#[test]
fn counters_of_a_new_datapath_are_zero_and_all_there() {
    let place = Place::new();
    let d = place.open().unwrap();
    let all = d.executor.counters().unwrap();
    assert_eq!(all.len(), policy_common::reason::Reason::ALL.len() * 2);
    assert!(all.iter().all(|(_, _, c)| (c.packets, c.bytes) == (0, 0)));
    assert_eq!(d.executor.rule_hits(u32::MAX).unwrap().packets, 0, "rules beyond the table share number 0");
    assert_eq!(d.executor.endpoint_totals(3).unwrap(), policy_agent::datapath::EndpointTotals::default());
    assert_eq!(d.executor.unhooked(Direction::Ingress).unwrap().packets, 0);
}

#[test]
fn a_map_of_another_shape_under_our_name_is_an_error_and_nothing_is_attached() {
    let place = Place::new();
    let pins = place.dir.pins();
    pins.create().unwrap();
    let mut small = MapId::Hosts4.spec();
    small.entries = 16;
    bpf::pin(bpf::create_map(&small, 16, None).unwrap().as_fd(), &pins.map(MapId::Hosts4)).unwrap();
    let e = place.open().unwrap_err();
    assert!(e.to_string().contains(&pins.map(MapId::Hosts4).display().to_string()), "{e}");
    assert!(e.to_string().contains("entries 16 ") && e.hint().is_some(), "{e}");
    // A program under a map's name, too.
    std::fs::remove_file(pins.map(MapId::Hosts4)).unwrap();
    let code = [bpf::instruction(0xb7, 0, 0, 0), bpf::instruction(0x95, 0, 0, 0)];
    bpf::pin(bpf::load_tc("stranger", &code).unwrap().as_fd(), &pins.map(MapId::Hosts4)).unwrap();
    let e = place.open().unwrap_err();
    assert!(matches!(&e, Error::ForeignPin { found, .. } if found == "a program"), "{e}");
}

#[test]
fn a_pin_directory_elsewhere_is_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    let e = load(&Config::new(elsewhere.path().join("pins")), OBJECT).unwrap_err();
    assert!(matches!(e, Error::NotBpffs(_)), "{e}");
    assert!(!elsewhere.path().join("pins").exists());
}

#[test]
fn a_misspelt_constant_is_an_error() {
    let place = Place::new();
    let mut config = Config::new(place.dir.path());
    config.constants.insert("NO_SUCH_CONSTANT", 1);
    assert!(matches!(load(&config, OBJECT), Err(Error::Object(_))));
}

#[test]
fn maps_of_another_layout_are_left_until_told_and_flows_survive_the_load() {
    let place = Place::new();
    let first = place.open().unwrap();
    first.executor.create_endpoint(&endpoint(1, 9, &["10.0.0.9"])).unwrap();
    let flows = first.executor.map(MapId::Flows4).get(&1u32.to_ne_bytes()).unwrap().unwrap();
    let inner = u32::from_ne_bytes(flows.try_into().unwrap());
    let old = place.dir.pins().map(MapId::Hosts4).with_file_name("HOSTS4@00000000");
    bpf::pin(first.executor.map(MapId::Hosts4).as_fd(), &old).unwrap();
    drop(first);
    let second = place.open().unwrap();
    let flows = second.executor.map(MapId::Flows4).get(&1u32.to_ne_bytes()).unwrap().unwrap();
    assert_eq!(u32::from_ne_bytes(flows.try_into().unwrap()), inner, "the same inner map");
    assert!(old.exists());
    assert_eq!(second.executor.pins().remove_stale_maps().unwrap(), ["HOSTS4@00000000"]);
    assert!(!old.exists() && place.dir.pins().map(MapId::Hosts4).exists());
}
