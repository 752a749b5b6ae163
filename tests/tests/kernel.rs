//! The running kernel takes the product: maps, programs, hooks. Needs nothing but a kernel, so it runs in VMs too.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use policy_agent::datapath::{Attach, Config, Datapath, IN_PROGRAM, Mechanism, OBJECT, OUT_PROGRAM, load};
use policy_tests::{
    net::{Netns, Rtnl},
    pins::PinDir,
    verifier,
};
use std::sync::Arc;

/// The verifier gives up at a million; what grows past this needs thought before it needs luck.
const MOST_INSTRUCTIONS: u64 = 300_000;

/// A namespace with a datapath in it.
fn datapath(attach: Attach) -> (Arc<Netns>, Datapath, PinDir) {
    let ns = Arc::new(Netns::new().unwrap());
    let pins = PinDir::new(&ns).unwrap();
    let config = Config { attach, ..Config::new(pins.path()) };
    let datapath = ns.run(|| load(&config, OBJECT)).unwrap();
    (ns, datapath, pins)
}

/// Major and minor number of the running kernel.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(['.', '-']).map(|number| number.trim().parse().unwrap_or_default());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn programs_are_verified_with_room_to_spare() {
    let walks = verifier::walk(OBJECT).unwrap();
    for walk in &walks {
        println!("VERIFIER {} {}", walk.program, walk.processed);
    }
    for program in [IN_PROGRAM, OUT_PROGRAM] {
        assert!(walks.iter().any(|walk| walk.program == program), "{walks:?}");
    }
    for walk in walks {
        assert!(walk.refused.is_none() && walk.processed < MOST_INSTRUCTIONS, "{walk:?}");
    }
}

#[test]
fn tcx_is_used_where_the_kernel_has_it() {
    let expected = if release() >= (6, 6) { Mechanism::Tcx } else { Mechanism::Clsact };
    let (_ns, datapath, _pins) = datapath(Attach::Auto);
    assert_eq!(datapath.hooks.mechanism(), expected);
}

#[test]
fn hooks_attach_both_ways_and_go_again() {
    for attach in [Attach::Auto, Attach::Clsact] {
        let (ns, datapath, _pins) = datapath(attach);
        let pod = Netns::new().unwrap();
        ns.run(|| {
            let rtnl = Rtnl::open().unwrap();
            rtnl.add_veth("veth1", "eth0", &pod).unwrap();
            let ifindex = rtnl.link("veth1").unwrap().index;
            let hooks = &datapath.hooks;
            assert_eq!(hooks.attach(ifindex).unwrap().fresh, 2);
            assert!(hooks.verify(ifindex).unwrap().iter().all(|hook| hook.present));
            hooks.detach(ifindex).unwrap();
            assert!(hooks.verify(ifindex).unwrap().iter().all(|hook| !hook.present));
        });
    }
}
