//! Agents of other builds: what they left pinned has other layouts, or is damaged.
//!
//! The layout of a map is part of its pin's name, and that is all by which a build knows another's maps. So another name
//! is what an agent of another build leaves, down to the programs behind the links, which go on with their own maps.

use super::setup::{actions, holds, is_clean, lab, status, streams};
use policy_agent::datapath::{bpf, spec::MapId};
use policy_tests::{lab::Lab, net::Topology, tamper::Tamper};
use std::{collections::BTreeSet, fs, os::fd::AsFd, path::PathBuf};

/// Names of pinned maps.
fn pins(lab: &mut Lab) -> BTreeSet<String> {
    let maps = lab.agent().bpffs().join("maps");
    fs::read_dir(maps).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// The same pins under the names of a build with another layout of these maps.
fn rename(lab: &mut Lab, which: impl Fn(MapId) -> bool, layout: &str) {
    let tamper = Tamper::new(lab.agent().bpffs());
    for map in MapId::ALL.into_iter().filter(|map| which(*map)) {
        let pin = tamper.map_pin(map);
        let other: PathBuf = pin.with_file_name(format!("{}@{layout}", map.spec().name));
        fs::rename(&pin, &other).unwrap();
    }
}

/// Maps whose entries name each other have one layout together.
fn is_table(map: MapId) -> bool {
    map.layout() == MapId::Policy.layout()
}

#[test]
fn to_a_build_with_other_tables_and_back() {
    let mut lab = lab(Topology::Bridge, &[]);
    let ours = pins(&mut lab);
    let streams = streams(&lab);
    for (layout, open) in [("0badf00d", true), ("1badf00d", false), ("2badf00d", true)] {
        lab.agent().kill().unwrap();
        rename(&mut lab, is_table, layout);
        lab.act_without_waiting(&actions(open)).unwrap();
        lab.agent().start().unwrap();
        lab.agent().wait().unwrap();
        holds(&lab, open);
        is_clean(&mut lab);
        assert_eq!(pins(&mut lab), ours, "maps of the other build stay");
    }
    // Flows of the other build's maps are not known: only what must never pass is judged here.
    streams.stop().unwrap().nothing_leaked().unwrap();
}

#[test]
fn to_a_build_with_another_layout_of_one_map_that_is_no_table_nothing_is_lost() {
    let mut lab = lab(Topology::Ptp, &[]);
    let ours = pins(&mut lab);
    let streams = streams(&lab);
    for map in MapId::ALL.into_iter().filter(|map| !is_table(*map)) {
        lab.agent().kill().unwrap();
        rename(&mut lab, |other| other == map, "0badf00d");
        lab.agent().start().unwrap();
        lab.agent().wait().unwrap();
        assert_eq!(pins(&mut lab), ours);
    }
    streams.stop().unwrap().nothing_lost().unwrap();
    is_clean(&mut lab);
    holds(&lab, false);
}

#[test]
fn pins_that_are_no_maps_of_ours_stop_the_start_and_not_the_enforcement() {
    let mut lab = lab(Topology::Ptp, &[]);
    let streams = streams(&lab);
    let tamper = Tamper::new(lab.agent().bpffs());
    for map in [MapId::Hosts4, MapId::Policy, MapId::Flows6, MapId::Events] {
        lab.agent().kill().unwrap();
        let (pin, aside) = (tamper.map_pin(map), tamper.map_pin(map).with_file_name("aside"));
        fs::rename(&pin, &aside).unwrap();
        let foreign = bpf::create_map(&MapId::IfaceX.spec(), 7, None).unwrap();
        bpf::pin(foreign.as_fd(), &pin).unwrap();
        // The socket is there before the maps are looked at.
        let started = lab.agent().start().and_then(|()| lab.agent().wait());
        let refused = started.unwrap_err().to_string();
        assert!(refused.contains("is pinned by something else") && refused.contains("hint: "), "{refused}");
        lab.agent().forget();
        fs::rename(&aside, &pin).unwrap();
        lab.agent().start().unwrap();
        lab.agent().wait().unwrap();
    }
    streams.stop().unwrap().nothing_lost().unwrap();
    is_clean(&mut lab);
    assert_eq!(status(&mut lab)["ready"], true);
}
