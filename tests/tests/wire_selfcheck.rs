//! Somebody else writes to the kernel's maps, links and pins: found, told and put right, on real packets.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use policy_agent::datapath::{Hook, bpf, spec::MapId};
use policy_common::abi::{
    HostWord, InterfaceWord, Interval, ROW_CLOSED, ROW_OPEN, endpoint_config, endpoint_words, limits,
};
use policy_tests::{
    lab::Lab,
    monitor::Monitor,
    net::{Family, Topology},
    probe::{Outcome, Want},
    tamper::{self, Tamper},
};
use serde_json::Value;
use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}, x/c: {labels: {app: c}}}}";
// x/c is allowed on another port, so that it has a class of its own.
const FROM_B: &str = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
                      ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], \
                                 ports: [{port: 80}, {port: 7000, protocol: UDP}]}, \
                                {from: [{podSelector: {matchLabels: {app: c}}}], ports: [{port: 81}]}]}";
const PATIENCE: Duration = Duration::from_secs(60);

struct Case {
    lab: Lab,
    tamper: Tamper,
    a: (u16, u32),
    ips: [IpAddr; 3],
    /// Drifts that were found before.
    found: u64,
}

impl Case {
    fn new(arguments: &[&str]) -> Self {
        let mut lab = Lab::with_arguments(Topology::Ptp, CLUSTER, arguments).unwrap();
        lab.policy(FROM_B).unwrap();
        let tamper = Tamper::new(lab.agent().bpffs());
        let ips = ["x/a", "x/b", "x/c"].map(|name| lab.ip(name, Family::V4).unwrap());
        let IpAddr::V4(address) = ips[0] else { panic!("not IPv4") };
        let a = tamper.endpoint(address).unwrap();
        let case = Self { lab, tamper, a, ips, found: 0 };
        case.holds();
        case
    }

    fn holds(&self) {
        self.lab.expect("x/b", "x/a", "TCP/80", true);
        self.lab.expect("x/c", "x/a", "TCP/80", false);
    }

    /// Exit code and answer of `policyctl verify`.
    fn verify(&mut self) -> (i32, Value) {
        let output = self.lab.agent().ctl(["verify", "--output", "json"]).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), answer)
    }

    fn is_clean(&mut self) {
        let (code, answer) = self.verify();
        assert_eq!(code, 0, "{answer:#}\n{}", self.lab.agent().log());
    }

    /// Found in this place by one check, put right, and not there at the next. Hooks are also looked at between checks,
    /// so that they may have been found already.
    fn finds(&mut self, what: &str, place: &str) {
        let (code, answer) = self.verify();
        let status = self.lab.agent().ctl(["status", "--output", "json"]).unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let drifts = status["self_check"]["drifts"].as_u64().unwrap();
        let new = drifts - std::mem::replace(&mut self.found, drifts);
        assert!(new > 0 && (code == 3 || place == "hook"), "{what}: {answer:#}\n{}", self.lab.agent().log());
        let recent = status["self_check"]["recent"].as_array().unwrap().iter().rev().take(new as usize);
        let mut named = recent.filter(|drift| drift["place"] == place);
        assert!(named.any(|drift| drift["repaired"] == true), "{what}: {status:#}");
        let (code, answer) = self.verify();
        assert_eq!(code, 0, "{what}, again: {answer:#}\n{}", self.lab.agent().log());
        self.holds();
    }

    fn hinfo(&self, address: IpAddr) -> (u32, HostWord) {
        let slot = self.tamper.host(address).unwrap();
        (slot, HostWord::unpack(self.tamper.words(MapId::Hinfo).unwrap().load(slot, 0).unwrap()))
    }

    /// Changes something while the agent is stopped, so that the change has the effect that shows it before the agent,
    /// which looks at hooks every few seconds, can put it right.
    fn with_effect<T>(&mut self, change: impl FnOnce(&Self) -> T, effect: impl FnOnce(&Self)) -> T {
        let pid = self.lab.agent().pid().unwrap().cast_signed();
        // SAFETY: takes numbers only; the process is a child that was not waited for.
        let signal = |signal| assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        signal(libc::SIGSTOP);
        let done = change(self);
        effect(self);
        signal(libc::SIGCONT);
        done
    }

    /// `x/c` or another passes.
    fn opens(&self, from: &str) {
        let outcome = self.lab.ask(from, "x/a", "TCP/80", Family::V4, Want::Answer).unwrap();
        assert!(matches!(outcome, Outcome::Answered(_)), "the change has no effect");
    }

    fn stays_out(&self, from: &str, why: &str) {
        let outcome = self.lab.ask(from, "x/a", "TCP/80", Family::V4, Want::Silence).unwrap();
        assert!(!matches!(outcome, Outcome::Answered(_)), "{why}");
    }
}

#[test]
fn nothing_is_found_where_nobody_did_anything() {
    let mut case = Case::new(&["--self-check", "off"]);
    let (code, answer) = case.verify();
    assert_eq!(code, 0, "{answer:#}");
    eprintln!("a check with three pods: {answer:#}");
    assert!(answer["trials"].as_u64() > Some(50), "{answer:#}");
    assert!(answer["entries"].as_u64() > Some(5) && answer["hooks"].as_u64() > Some(5), "{answer:#}");
    // After every kind of change, too.
    for spec in
        [FROM_B.replace("app: b", "app: c"), FROM_B.replace("7000", "7001"), "{podSelector: {}}".into()]
    {
        case.lab.policy(&spec).unwrap();
        case.is_clean();
    }
    case.lab.act("[{pod: {remove: x/c, add: {x/new: {labels: {app: b}}}}}]").unwrap();
    case.is_clean();
    case.lab.agent().kill().unwrap();
    case.lab.agent().start().unwrap();
    case.lab.agent().wait().unwrap();
    case.is_clean();
}

#[test]
fn addresses_and_prefixes_that_somebody_changed() {
    let mut case = Case::new(&["--self-check", "off"]);
    let [_, b, c] = case.ips;
    let hinfo = case.tamper.words(MapId::Hinfo).unwrap();
    let (slot, mut word) = case.hinfo(c);
    word.class = case.hinfo(b).1.class;
    hinfo.store(slot, 0, word.pack()).unwrap();
    case.opens("x/c");
    case.finds("another class", "HINFO");

    let (map, key) = tamper::host_key(b);
    let hosts = case.tamper.map(map).unwrap();
    hosts.remove(&key).unwrap();
    case.stays_out("x/b", "the change has no effect");
    case.finds("an address less", "HOSTS4");

    for (what, slot) in [("of nothing", u32::MAX), ("of slot 0", 0), ("of another's slot", case.hinfo(b).0)] {
        hosts.insert(&[198, 18, 0, 1], &slot.to_ne_bytes(), 0).unwrap();
        case.finds(&format!("an address {what}"), "HOSTS4");
    }
    let six = case.tamper.map(MapId::Hosts6).unwrap();
    six.insert(&[0xfd; 16], &7u32.to_ne_bytes(), 0).unwrap();
    case.finds("an IPv6 address more", "HOSTS6");

    let prefixes = case.tamper.map(MapId::Prefix4).unwrap();
    for (length, slot) in [(0u32, case.hinfo(b).0), (9, u32::MAX)] {
        let key = [&length.to_ne_bytes()[..], &[198, 18, 7, 9]].concat();
        prefixes.insert(&key, &slot.to_ne_bytes(), 0).unwrap();
        case.finds("a prefix more", "PREFIX4");
    }
}

#[test]
fn rows_and_rule_sets_that_somebody_changed() {
    let mut case = Case::new(&["--self-check", "off"]);
    let [_, b, c] = case.ips;
    let policy = case.tamper.words(MapId::Policy).unwrap();
    let cell = |row: u16, class: u16| u32::from(row) * limits::CLASSES + u32::from(class);
    let store = |at: u32, set: u16| {
        policy.cell(at).unwrap().store(set, std::sync::atomic::Ordering::Release);
    };
    let load = |at: u32| policy.cell(at).unwrap().load(std::sync::atomic::Ordering::Acquire);
    // Rows are written anew after each repair: always ask for the present one.
    let row = |case: &Case| case.tamper.word(case.a.0).unwrap().ingress_row;
    let set = |case: &Case| load(cell(row(case), case.hinfo(b).1.class));
    assert_ne!(set(&case), 0);
    store(cell(row(&case), case.hinfo(c).1.class), set(&case));
    case.opens("x/c");
    case.finds("a cell", "POLICY");
    store(cell(row(&case), case.hinfo(b).1.class), u16::MAX);
    case.finds("a cell that names no rule set", "POLICY");
    store(cell(ROW_CLOSED, 3), 1);
    case.finds("a cell of the closed row", "POLICY");
    store(cell(row(&case), 4000), 1);
    case.finds("a cell of a class that there is not", "POLICY");

    let sets = case.tamper.words(MapId::RuleSet).unwrap();
    let at = u32::from(set(&case));
    sets.store(at, 2, sets.load(at, 2).unwrap() | 1).unwrap();
    case.finds("what a rule set says of other ports", "RULESET");
    let at = u32::from(set(&case));
    let base = sets.load(at, 0).unwrap() as u32;
    let intervals = case.tamper.words(MapId::Interval).unwrap();
    let mut first = Interval::unpack(intervals.load(base, 0).unwrap());
    (first.low, first.high) = (90, 91);
    intervals.store(base, 0, first.pack()).unwrap();
    case.stays_out("x/b", "the change has no effect");
    case.finds("an interval", "INTERVAL");
}

#[test]
fn endpoints_and_interfaces_that_somebody_changed() {
    let mut case = Case::new(&["--self-check", "off"]);
    let slot = case.a.0;
    for epoch in [0u32, 1, u32::MAX, 5_000_000] {
        let mut word = case.tamper.word(slot).unwrap();
        (word.ingress_row, word.epoch) = (ROW_OPEN, word.epoch.wrapping_add(epoch));
        case.tamper.store_word(slot, word).unwrap();
        case.opens("x/c");
        case.finds(&format!("an open row, epoch +{epoch}"), "EP");
    }
    let mut word = case.tamper.word(slot).unwrap();
    word.ingress_row = u16::MAX;
    case.tamper.store_word(slot, word).unwrap();
    case.finds("a row that there is not", "EP");

    let ep = case.tamper.words(MapId::Ep).unwrap();
    let identity = ep.load(slot.into(), endpoint_words::IDENTITY).unwrap();
    for other in
        [identity & !(u64::from(endpoint_config::ANTI_SPOOF) << 32), 0, identity ^ 1 << 48, identity ^ 1]
    {
        ep.store(slot.into(), endpoint_words::IDENTITY, other).unwrap();
        case.finds(&format!("another identity {other:#x}"), "EP");
    }
    ep.store(900, endpoint_words::IDENTITY, 77).unwrap();
    case.finds("an endpoint more", "EP");
    ep.store(slot.into(), endpoint_words::ADDRESS4, 1).unwrap();
    case.finds("another address", "EP");

    let iface = case.tamper.words(MapId::Iface).unwrap();
    iface.store(case.a.1 % limits::INTERFACES, 0, 0).unwrap();
    case.opens("x/c");
    case.finds("an interface less", "IFACE");
    let more = InterfaceWord { ifindex: 60_000, slot, kind: 1, flags: 0 };
    iface.store(60_000, 0, more.pack()).unwrap();
    case.finds("an interface more", "IFACE");
    let extra = case.tamper.map(MapId::IfaceX).unwrap();
    extra.insert(&70_000u32.to_ne_bytes(), &more.pack().to_ne_bytes(), 0).unwrap();
    case.finds("an interface more", "IFACE_X");

    let locals = case.tamper.map(MapId::Locals).unwrap();
    let key = locals.elements().unwrap().into_keys().next().unwrap();
    locals.remove(&key).unwrap();
    case.finds("an address of a pod less", "LOCALS");
    locals.insert(&key, &33u32.to_ne_bytes(), 0).unwrap();
    case.finds("an address of another pod", "LOCALS");

    let flows = case.tamper.map(MapId::Flows4).unwrap();
    let other = tamper::flow_map(MapId::Flows4).unwrap();
    let value = (other.as_raw_fd() as u32).to_ne_bytes();
    flows.insert(&u32::from(slot).to_ne_bytes(), &value, 0).unwrap();
    case.finds("other flows", "FLOWS4");
    flows.remove(&u32::from(slot).to_ne_bytes()).unwrap();
    case.finds("no flows", "FLOWS4");
    case.tamper.words(MapId::Meta).unwrap().store(0, 4, 3).unwrap();
    case.finds("a switch", "META");
}

#[test]
fn hooks_and_pins_that_somebody_changed() {
    let mut case = Case::new(&["--self-check", "off"]);
    let ifindex = case.a.1;
    let opens = |case: &Case| case.opens("x/c");
    let detach = |case: &Case| {
        let link = case.tamper.link(ifindex, Hook::In).unwrap();
        bpf::detach_link(link.as_fd()).unwrap();
    };
    case.with_effect(detach, opens);
    case.finds("a link that was detached", "hook");

    let replace = |case: &Case| {
        let link = case.tamper.link(ifindex, Hook::In).unwrap();
        tamper::replace(&link, &tamper::program(-1).unwrap()).unwrap();
    };
    case.with_effect(replace, opens);
    case.finds("another program behind our link", "hook");

    let stranger = tamper::program(0).unwrap();
    let attach = |case: &Case| {
        let kind = aya_obj::generated::bpf_attach_type::BPF_TCX_EGRESS;
        let node = case.lab.node().ns().clone();
        node.run(|| bpf::attach_tcx(stranger.as_fd(), ifindex, kind)).unwrap()
    };
    let first = case.with_effect(attach, opens);
    case.finds("a program that runs first", "hook");
    drop(first);
    // Another copy of our programs is loaded for that, on the maps that are, not on those that are pinned.
    for map in [MapId::Iface, MapId::Ep, MapId::Policy] {
        fs::remove_file(case.tamper.map_pin(map)).unwrap();
    }
    let second = attach(&case);
    case.finds("a program that runs first, and no pins", "hook");
    drop(second);
    case.stays_out("x/c", "our program has lost its maps");

    let unpin = |case: &Case| {
        for hook in [Hook::In, Hook::Out] {
            fs::remove_file(case.tamper.link_pin(ifindex, hook)).unwrap();
        }
    };
    case.with_effect(unpin, |case| case.stays_out("x/c", "a hook that was only pinned"));
    case.finds("links that are not pinned", "hook");
    for map in [MapId::Policy, MapId::Flows4, MapId::Meta] {
        fs::remove_file(case.tamper.map_pin(map)).unwrap();
    }
    let foreign = bpf::create_map(&MapId::Hosts4.spec(), 16, None).unwrap();
    fs::remove_file(case.tamper.map_pin(MapId::Hosts4)).unwrap();
    bpf::pin(foreign.as_fd(), &case.tamper.map_pin(MapId::Hosts4)).unwrap();
    case.finds("pins that are gone or another's", "pin");
    // The next agent takes over what is pinned.
    case.lab.agent().kill().unwrap();
    case.holds();
    case.lab.agent().start().unwrap();
    case.lab.agent().wait().unwrap();
    case.is_clean();
    case.holds();
}

#[test]
fn the_agent_finds_it_by_itself_and_tells_everybody() {
    let mut case = Case::new(&["--self-check", "100ms", "--metrics-address", "127.0.0.1:9464"]);
    let monitor = Monitor::start(case.lab.agent(), ["monitor"], |_| ()).unwrap();
    let dropped = || case.lab.ask("x/c", "x/a", "TCP/80", Family::V4, Want::Silence).map(drop);
    monitor.begun(PATIENCE, dropped).unwrap();
    let mut word = case.tamper.word(case.a.0).unwrap();
    word.ingress_row = ROW_OPEN;
    case.tamper.store_word(case.a.0, word).unwrap();
    let end = Instant::now() + PATIENCE;
    let status = loop {
        let status = case.lab.agent().ctl(["status", "--output", "json"]).unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        if status["self_check"]["drifts"].as_u64() > Some(0) {
            break status;
        }
        assert!(Instant::now() < end, "nothing was found: {status:#}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status["self_check"]["recent"][0]["place"], "EP", "{status:#}");
    assert_eq!(status["self_check"]["recent"][0]["repaired"], true, "{status:#}");
    case.holds();
    assert!(case.lab.agent().log().contains("somebody else changed EP"), "{}", case.lab.agent().log());
    let metrics =
        case.lab.node().ns().run(|| policy_tests::agent::http("127.0.0.1:9464", "/metrics")).unwrap();
    assert!(metrics.contains("policy_agent_self_check_drifts_total{place=\"EP\"} 1"), "{metrics}");
    // Rounds go on and try packets.
    let end = Instant::now() + PATIENCE;
    loop {
        let status = case.lab.agent().ctl(["status", "--output", "json"]).unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        if status["self_check"]["trials"].as_u64() > Some(100)
            && status["self_check"]["rounds"].as_u64() > Some(3)
        {
            assert_eq!(status["self_check"]["drifts"], 1, "{status:#}");
            break;
        }
        assert!(Instant::now() < end, "no rounds: {status:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = monitor.shows(&["NODE self-check: somebody else changed EP"], PATIENCE);
    assert!(told, "{:#?}", monitor.lines());
}
