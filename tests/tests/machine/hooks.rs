//! Hooks on real interfaces: both mechanisms, take-over under traffic, order, removal.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
use policy_agent::datapath::bpf::{self, instruction};
use policy_agent::datapath::{
    Attach, Attached, Error, Hook, Hooks, Mechanism, Program, Programs, remove_all, tcx_supported,
};
use policy_tests::net::{Attach as At, Family, Host, Netns, Node, Topology};
use policy_tests::pins::PinDir;

/// Drops everything but ARP (without which no packet would ever be sent) when `verdict` is 2; else returns it.
fn program(name: &'static str, verdict: i32) -> Program {
    let arp = i32::from(0x0806u16.to_be());
    let code = [
        instruction(0x61, 0x11, 16, 0),   // r1 = skb->protocol
        instruction(0xb7, 0, 0, -1),      // r0 = go on
        instruction(0x15, 1, 1, arp),     // ARP: leave it at that
        instruction(0xb7, 0, 0, verdict), // r0 = verdict
        instruction(0x95, 0, 0, 0),       // exit
    ];
    Program::new(bpf::load_tc(name, &code).unwrap(), name).unwrap()
}

const DROP: i32 = 2;
const GO_ON: i32 = -1;
const ACCEPT: i32 = 0;

/// Nothing gets out of the pod; everything may get in.
fn mute() -> Programs {
    Programs {
        pod_in: program("pod_in", GO_ON),
        pod_out: program("pod_out", DROP),
        node_exit: program("node_exit", DROP),
    }
}

struct Fixture {
    node: Node,
    pod: Arc<Host>,
    ifindex: u32,
    dir: PinDir,
    server: UdpSocket,
}

impl Fixture {
    fn new() -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let pod = node.add("a", At::Pod, &["10.244.0.10".parse().unwrap()]).unwrap();
        let ifindex = node.rtnl().link(&pod.host_link).unwrap().index;
        let dir = PinDir::new(node.ns()).unwrap();
        dir.pins().create().unwrap();
        let server = node.ns().run(|| UdpSocket::bind((Node::ADDRESS4, 0)).unwrap());
        server.set_nonblocking(true).unwrap();
        Self { node, pod, ifindex, dir, server }
    }

    fn ns(&self) -> &Netns {
        self.node.ns()
    }

    fn hooks(&self, attach: Attach) -> Hooks {
        self.ns().run(|| Hooks::new(self.dir.pins(), mute(), Box::new(|| Ok(mute())), attach).unwrap())
    }

    fn client(&self) -> UdpSocket {
        let source = SocketAddr::new(self.pod.ip(Family::V4).unwrap(), 0);
        let socket = self.pod.ns.run(|| UdpSocket::bind(source).unwrap());
        socket.connect(self.server.local_addr().unwrap()).unwrap();
        socket
    }

    fn arrived(&self) -> bool {
        self.server.recv(&mut [0; 8]).is_ok()
    }

    /// Whether a packet gets out of the pod. A veth delivers within the call that sends, or soon after it where the
    /// receiving side is deferred, so the answer "no" waits a little and the answer "yes" does not.
    fn talks(&self) -> bool {
        self.is_heard_within(Duration::from_millis(100))
    }

    /// The same where it must, on a machine that is emulated and busy.
    fn must_talk(&self) -> bool {
        self.is_heard_within(Duration::from_secs(60))
    }

    fn is_heard_within(&self, limit: Duration) -> bool {
        while self.arrived() {}
        self.client().send(b"x").unwrap();
        let end = Instant::now() + limit;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
            if self.arrived() {
                return true;
            }
        }
        false
    }

    /// Does `work`, `again` and again until packets were sent meanwhile: a sender that has no processor sends nothing. Hands
    /// back how many.
    fn under_traffic(&self, again: bool, mut work: impl FnMut()) -> u32 {
        let (client, sent, stop) = (self.client(), AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if client.send(b"x").is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            while sent.load(Ordering::Relaxed) < 100 {
                std::thread::yield_now();
            }
            let before = sent.load(Ordering::Relaxed);
            let guard = StopOnDrop(&stop); // also when `work` panics
            let end = Instant::now() + Duration::from_secs(60);
            work();
            while again && sent.load(Ordering::Relaxed) == before && Instant::now() < end {
                work();
            }
            drop(guard);
            sent.load(Ordering::Relaxed) - before
        })
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kernels before 6.6 have clsact only.
fn mechanisms() -> Vec<Attach> {
    if tcx_supported() { vec![Attach::Tcx, Attach::Clsact] } else { vec![Attach::Clsact] }
}

#[test]
fn attached_programs_judge_and_detached_ones_do_not() {
    for attach in mechanisms() {
        let f = Fixture::new();
        assert!(f.must_talk(), "without a program packets must arrive");
        let hooks = f.hooks(attach);
        f.ns().run(|| {
            assert_eq!(hooks.attach(f.ifindex).unwrap(), Attached { fresh: 2, taken_over: 0 });
            for state in hooks.verify(f.ifindex).unwrap() {
                assert!(state.present && state.before.is_empty(), "{attach:?} {state:?}");
            }
        });
        assert!(!f.talks(), "{attach:?}");
        f.ns().run(|| {
            assert_eq!(hooks.attach(f.ifindex).unwrap(), Attached { fresh: 0, taken_over: 2 }, "again");
            assert_eq!(hooks.attached().unwrap().into_iter().collect::<Vec<_>>(), [f.ifindex]);
            hooks.detach(f.ifindex).unwrap();
            assert!(hooks.attached().unwrap().is_empty());
            assert!(hooks.verify(f.ifindex).unwrap().iter().all(|state| !state.present));
        });
        assert!(f.must_talk(), "{attach:?}");
    }
}

#[test]
fn another_agent_takes_over_and_no_packet_gets_by() {
    for attach in mechanisms() {
        let f = Fixture::new();
        let first = f.hooks(attach);
        f.ns().run(|| first.attach(f.ifindex).unwrap());
        assert!(!f.talks());
        drop(first);
        let sent = f.under_traffic(true, || {
            for _ in 0..10 {
                let next = f.hooks(attach);
                let done = f.ns().run(|| next.attach(f.ifindex).unwrap());
                assert_eq!(done, Attached { fresh: 0, taken_over: 2 }, "{attach:?}");
            }
        });
        assert!(sent > 0, "packets were sent during the take-over");
        assert!(!f.arrived(), "{attach:?}: a packet got by among {sent}");
        let last = f.hooks(attach);
        let states = f.ns().run(|| last.verify(f.ifindex).unwrap());
        assert!(states.iter().all(|state| !state.present), "another agent's programs: {states:?}");
        let states = f.ns().run(|| last.attach(f.ifindex).and_then(|_| last.verify(f.ifindex)).unwrap());
        assert!(states.iter().all(|state| state.present && state.before.is_empty()), "{states:?}");
        f.ns().run(|| last.detach(f.ifindex).unwrap());
        assert!(f.must_talk());
    }
}

#[test]
fn changing_the_mechanism_leaves_one_program_per_hook_and_no_gap() {
    if !tcx_supported() {
        return;
    }
    let f = Fixture::new();
    f.ns().run(|| f.hooks(Attach::Clsact).attach(f.ifindex).unwrap());
    assert!(!f.talks());
    let sent = f.under_traffic(true, || {
        for attach in [Attach::Tcx, Attach::Clsact, Attach::Auto] {
            let hooks = f.hooks(attach);
            f.ns().run(|| hooks.attach(f.ifindex).unwrap());
            assert!(!f.arrived(), "{attach:?}");
            let states = f.ns().run(|| hooks.verify(f.ifindex).unwrap());
            let sole = states.iter().all(|state| state.present && state.before.is_empty());
            assert!(sole, "{attach:?} {states:?}");
        }
    });
    assert!(sent > 0 && !f.arrived(), "packets were sent during the changes");
    f.ns().run(|| {
        let hooks = f.hooks(Attach::Auto);
        assert_eq!(hooks.mechanism(), Mechanism::Tcx);
        assert!(qdisc_add_clsact(&f.pod.host_link).is_err(), "to take the qdisc away would cost packets");
        hooks.detach(f.ifindex).unwrap();
        qdisc_add_clsact(&f.pod.host_link).expect("the qdisc of the earlier setting is gone");
    });
}

#[test]
fn a_bridge_judges_at_once_and_gives_way_to_links_without_a_gap() {
    if !tcx_supported() {
        return;
    }
    let with_links = || {
        let f = Fixture::new();
        let hooks = f.hooks(Attach::Auto);
        f.ns().run(|| assert!(hooks.bridge(f.ifindex).unwrap()));
        assert!(!f.talks(), "filters judge");
        f.ns().run(|| {
            assert!(!hooks.bridge(f.ifindex).unwrap(), "once is enough");
            assert_eq!(hooks.attached().unwrap().into_iter().collect::<Vec<_>>(), [f.ifindex]);
        });
        let sent = f.under_traffic(false, || {
            let done = f.ns().run(|| hooks.attach(f.ifindex).unwrap());
            assert_eq!(done, Attached { fresh: 0, taken_over: 2 }, "packets were judged all the time");
        });
        assert!(!f.arrived(), "a packet got by among {sent}");
        (sent > 0).then_some((f, hooks))
    };
    let (f, hooks) = (0..100).find_map(|_| with_links()).expect("packets were sent meanwhile");
    f.ns().run(|| {
        let states = hooks.verify(f.ifindex).unwrap();
        assert!(states.iter().all(|s| s.present && s.before.is_empty() && s.behind.is_empty()), "{states:?}");
        assert!(!hooks.bridge(f.ifindex).unwrap(), "links need none");
        let stays = "the qdisc stays: to take it away costs packets";
        assert!(qdisc_add_clsact(&f.pod.host_link).is_err(), "{stays}");
    });
    // The next agent leaves it as well.
    let next = f.hooks(Attach::Auto);
    f.ns().run(|| {
        assert_eq!(next.attach(f.ifindex).unwrap(), Attached { fresh: 0, taken_over: 2 });
        // It is looked for as a device that is no pod's, too, since it is noted.
        assert!(next.attached_exits().unwrap().contains(&f.ifindex));
        next.detach_exit(f.ifindex).unwrap();
        assert!(qdisc_add_clsact(&f.pod.host_link).is_err());
        next.detach(f.ifindex).unwrap();
        assert!(next.attached().unwrap().is_empty());
        qdisc_add_clsact(&f.pod.host_link).expect("the qdisc is gone");
    });
    assert!(f.must_talk());
}

#[test]
fn a_bridge_outlives_its_agent_and_stands_nowhere_beside_others() {
    if !tcx_supported() {
        return;
    }
    let f = Fixture::new();
    f.ns().run(|| assert!(f.hooks(Attach::Auto).bridge(f.ifindex).unwrap()));
    assert!(!f.talks(), "its agent is gone");
    f.ns().run(|| {
        let next = f.hooks(Attach::Auto);
        assert_eq!(next.attach(f.ifindex).unwrap(), Attached { fresh: 0, taken_over: 2 });
        next.detach(f.ifindex).unwrap();
        assert!(next.bridge(f.ifindex).unwrap());
        assert_eq!(remove_all(&f.dir.pins()).unwrap(), (1, 0));
        // Filters would run behind this one, or not at all.
        let foreign = program("stranger", ACCEPT);
        let link = bpf::attach_tcx(foreign.as_fd(), f.ifindex, BPF_TCX_INGRESS).unwrap();
        assert!(!f.hooks(Attach::Auto).bridge(f.ifindex).unwrap());
        drop(link);
        qdisc_add_clsact(&f.pod.host_link).expect("nothing was changed");
        assert!(!f.hooks(Attach::Auto).bridge(f.ifindex).unwrap(), "somebody else's qdisc");
        assert!(!f.hooks(Attach::Clsact).bridge(f.ifindex).unwrap());
        assert!(f.hooks(Attach::Auto).attached().unwrap().is_empty());
    });
    assert!(f.must_talk());
}

#[test]
fn a_program_that_goes_before_ours_is_told_and_outrun() {
    if !tcx_supported() {
        return;
    }
    let f = Fixture::new();
    let hooks = f.hooks(Attach::Tcx);
    f.ns().run(|| hooks.attach(f.ifindex).unwrap());
    let foreign = program("stranger", ACCEPT);
    let _link = f.ns().run(|| bpf::attach_tcx(foreign.as_fd(), f.ifindex, BPF_TCX_INGRESS).unwrap());
    assert!(f.must_talk(), "a program that accepts before ours lets packets by");
    f.ns().run(|| {
        let [out, into] = hooks.verify(f.ifindex).unwrap();
        assert_eq!((out.hook, out.present), (Hook::Out, true));
        assert_eq!(out.before, [format!("stranger (program {})", foreign.id)]);
        assert!(into.before.is_empty());
        assert!(hooks.repair(f.ifindex).unwrap());
        assert!(hooks.verify(f.ifindex).unwrap().iter().all(|s| s.present && s.before.is_empty()));
        let order = bpf::query_tcx(f.ifindex, BPF_TCX_INGRESS).unwrap();
        let names: Vec<&str> = order.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["pod_out", "stranger"], "first again, once, and the stranger is left alone");
        let [out, _] = hooks.verify(f.ifindex).unwrap();
        assert_eq!(out.behind, [format!("stranger (program {})", foreign.id)], "told: it can take the tag");
        assert!(!hooks.repair(f.ifindex).unwrap(), "nothing more to do");
    });
    assert!(!f.talks());
    let next = f.hooks(Attach::Tcx);
    assert_eq!(f.ns().run(|| next.attach(f.ifindex).unwrap()), Attached { fresh: 0, taken_over: 2 });
    assert!(!f.talks());
}

#[test]
fn a_filter_that_goes_before_ours_is_told_and_outrun() {
    let f = Fixture::new();
    let hooks = f.hooks(Attach::Clsact);
    f.ns().run(|| hooks.attach(f.ifindex).unwrap());
    let mut foreign = f.ns().run(|| foreign_filter(&f, 1, 77));
    assert!(f.must_talk(), "the newest filter of a priority is the first");
    f.ns().run(|| {
        let [out, _] = hooks.verify(f.ifindex).unwrap();
        assert!(out.present && out.before.len() == 1, "{out:?}");
        assert!(hooks.repair(f.ifindex).unwrap());
        assert!(hooks.verify(f.ifindex).unwrap().iter().all(|s| s.present && s.before.is_empty()));
        assert!(!hooks.repair(f.ifindex).unwrap(), "nothing more to do");
    });
    assert!(!f.talks());
    f.ns().run(|| hooks.detach(f.ifindex).unwrap());
    let there = f.ns().run(|| qdisc_add_clsact(&f.pod.host_link));
    assert!(there.is_err(), "the qdisc stays as long as a stranger's filter is in it");
    foreign.unload().unwrap();
}

/// A filter of somebody else that accepts what the pod sends.
fn foreign_filter(f: &Fixture, priority: u16, handle: u16) -> SchedClassifier {
    let path = f.dir.pins().link(f.ifindex, Hook::Out).with_file_name("stranger");
    bpf::pin(program("stranger", ACCEPT).as_fd(), &path).unwrap();
    let mut foreign = SchedClassifier::from_pin(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let options = NlOptions { priority, handle: TcHandle::new(0, handle), classid: None };
    let id = foreign
        .attach_with_options(&f.pod.host_link, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
        .unwrap();
    std::mem::forget(foreign.take_link(id).unwrap());
    foreign
}

#[test]
fn a_program_that_was_removed_is_put_back() {
    for attach in mechanisms() {
        let f = Fixture::new();
        let hooks = f.hooks(attach);
        f.ns().run(|| {
            hooks.attach(f.ifindex).unwrap();
            let link = f.dir.pins().link(f.ifindex, Hook::Out);
            if let Ok(fd) = bpf::open_pin(&link) {
                bpf::detach_link(fd.as_fd()).unwrap();
            } else {
                aya::programs::tc::qdisc_detach_program(
                    &f.pod.host_link,
                    TcAttachType::Ingress,
                    "policy-agent:out",
                )
                .unwrap();
            }
            assert!(!hooks.verify(f.ifindex).unwrap()[0].present);
        });
        assert!(f.must_talk(), "{attach:?}");
        f.ns().run(|| assert!(hooks.repair(f.ifindex).unwrap()));
        assert!(!f.talks(), "{attach:?}");
    }
}

/// A device that is no pod's has one hook, on the way out, and ours is the first there: a stranger that accepts would
/// end the chain before us.
#[test]
fn other_devices_are_hooked_on_the_way_out() {
    for attach in mechanisms() {
        let f = Fixture::new();
        let hooks = f.hooks(attach);
        let device = f.node.rtnl().link(&f.node.as_host().host_link).unwrap().index;
        f.ns().run(|| {
            assert_eq!(hooks.attach_exit(device).unwrap(), Attached { fresh: 1, taken_over: 0 });
            assert_eq!(hooks.attach_exit(device).unwrap(), Attached { fresh: 0, taken_over: 1 });
            let next = f.hooks(attach);
            assert_eq!(next.attach_exit(device).unwrap(), Attached { fresh: 0, taken_over: 1 });
            let state = next.verify_exit(device).unwrap();
            assert!(state.present && state.before.is_empty() && state.hook == Hook::Exit, "{state:?}");
            assert!(next.attached_exits().unwrap().contains(&device));
            if attach == Attach::Tcx {
                let foreign = program("stranger", ACCEPT);
                let link = bpf::attach_tcx(foreign.as_fd(), device, BPF_TCX_EGRESS).unwrap();
                assert_eq!(next.verify_exit(device).unwrap().before.len(), 1);
                assert!(next.repair_exit(device).unwrap());
                let order = bpf::query_tcx(device, BPF_TCX_EGRESS).unwrap();
                let names: Vec<&str> = order.iter().map(|p| p.name.as_str()).collect();
                assert_eq!(names, ["node_exit", "stranger"]);
                drop(link);
            }
            // A device that turns out to be a pod's is judged as one, and one that is no pod's any more is not.
            assert_eq!(next.attach(device).unwrap().fresh, 2);
            assert!(!next.verify_exit(device).unwrap().present, "{attach:?}");
            next.detach(device).unwrap();
            assert_eq!(next.attach_exit(device).unwrap(), Attached { fresh: 1, taken_over: 0 });
            next.attach(f.ifindex).unwrap();
            next.detach_exit(device).unwrap();
            assert!(!next.verify_exit(device).unwrap().present);
            assert!(next.verify(f.ifindex).unwrap().iter().all(|state| state.present));
            next.attach_exit(device).unwrap();
            assert_eq!(remove_all(&f.dir.pins()).unwrap(), (2, 0), "{attach:?}");
            qdisc_add_clsact(&f.node.as_host().host_link).expect("the qdisc is gone");
        });
    }
}

#[test]
fn cleanup_needs_no_agent_and_leaves_nothing() {
    for attach in mechanisms() {
        let f = Fixture::new();
        f.ns().run(|| {
            f.hooks(attach).attach(f.ifindex).unwrap();
            assert_eq!(remove_all(&f.dir.pins()).unwrap(), (1, 0), "{attach:?}");
            assert!(!f.dir.path().exists());
            assert!(bpf::query_tcx(f.ifindex, BPF_TCX_INGRESS).map_or(true, |p| p.is_empty()));
            qdisc_add_clsact(&f.pod.host_link).expect("the qdisc is gone");
            assert_eq!(remove_all(&f.dir.pins()).unwrap(), (0, 0), "twice is fine");
        });
        assert!(f.must_talk(), "{attach:?}");
    }
}

#[test]
fn an_interface_that_went_first_is_forgotten() {
    for attach in mechanisms() {
        let mut f = Fixture::new();
        let hooks = f.hooks(attach);
        f.ns().run(|| hooks.attach(f.ifindex).unwrap());
        f.node.remove("a").unwrap();
        f.ns().run(|| {
            assert!(hooks.attached().unwrap().contains(&f.ifindex), "its pins or notes are still there");
            for error in [hooks.attach(f.ifindex).unwrap_err(), hooks.repair(f.ifindex).unwrap_err()] {
                assert!(error.is_gone(), "{attach:?}: {error:?}");
            }
            hooks.detach(f.ifindex).unwrap();
            assert!(hooks.attached().unwrap().is_empty(), "{attach:?}");
        });
    }
}

#[test]
fn a_pin_of_another_interface_is_not_taken_for_ours() {
    if !tcx_supported() {
        return;
    }
    let mut f = Fixture::new();
    let other = f.node.add("b", At::Pod, &["10.244.0.11".parse().unwrap()]).unwrap();
    let other = f.node.rtnl().link(&other.host_link).unwrap().index;
    let (hooks, pins) = (f.hooks(Attach::Tcx), f.dir.pins());
    f.ns().run(|| hooks.attach(other).unwrap());
    // As if the index had been given to another interface since the agent died.
    std::fs::rename(pins.link(other, Hook::Out), pins.link(f.ifindex, Hook::Out)).unwrap();
    f.ns().run(|| assert_eq!(hooks.attach(f.ifindex).unwrap(), Attached { fresh: 2, taken_over: 0 }));
    assert!(!f.talks());
}

#[test]
fn a_stranger_in_the_place_of_our_pin_is_an_error_that_names_it() {
    if !tcx_supported() {
        return;
    }
    let f = Fixture::new();
    let path = f.dir.pins().link(f.ifindex, Hook::Out);
    bpf::pin(program("stranger", ACCEPT).as_fd(), &path).unwrap();
    let e = f.ns().run(|| f.hooks(Attach::Tcx).attach(f.ifindex).unwrap_err());
    assert!(matches!(&e, Error::ForeignPin { path: p, .. } if *p == path), "{e}");
    assert!(e.to_string().contains(&path.display().to_string()) && e.hint().is_some(), "{e}");
    assert!(f.must_talk(), "nothing was attached");
}
