//! The running kernel takes the product: maps, programs, hooks.

use policy_agent::datapath::{IN_PROGRAM, Mechanism, OBJECT, OUT_PROGRAM};
use policy_tests::{
    net::{Netns, Rtnl},
    pool, verifier,
};

/// The verifier gives up at a million; what grows past this needs thought before it needs luck.
const MOST_INSTRUCTIONS: u64 = 300_000;

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
fn hooks_attach_both_ways_and_go_again() {
    // TCX where the kernel has it.
    let expected = if release() >= (6, 6) { Mechanism::Tcx } else { Mechanism::Clsact };
    let lent = pool::lend().unwrap();
    let hooks = &lent.datapath.hooks;
    assert_eq!(hooks.mechanism(), expected);
    let (ns, pod) = (Netns::new().unwrap(), Netns::new().unwrap());
    ns.run(|| {
        let rtnl = Rtnl::open().unwrap();
        rtnl.add_veth("veth1", "eth0", &pod).unwrap();
        let ifindex = rtnl.link("veth1").unwrap().index;
        assert_eq!(hooks.attach(ifindex).unwrap().fresh, 2);
        assert!(hooks.verify(ifindex).unwrap().iter().all(|hook| hook.present));
        hooks.detach(ifindex).unwrap();
        assert!(hooks.verify(ifindex).unwrap().iter().all(|hook| !hook.present));
    });
}
