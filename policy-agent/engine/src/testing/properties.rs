//! The compiler and its plans against the evaluator, on random worlds and random histories.
//!
//! `POLICY_SEED` repeats one case; `POLICY_CASES` sets how many there are.

use policy_common::abi::action;

use super::node::SimNode;
use super::rng::Rng;
use super::samples::{front_samples, samples};
use super::worlds;
use crate::limits::Limits;
use crate::model::ServiceMode;
use crate::world::Delta;

const TINY: Limits = Limits {
    endpoints: 32,
    rows: 64,
    classes: 128,
    hosts: 128,
    prefixes: 128,
    host_info: 512,
    rule_sets: 512,
    intervals: 1024,
    intervals_per_set: 1023,
};

/// Runs a property for many seeds; the failing seed is in the panic.
fn for_seeds(cases: u64, property: impl Fn(&mut Rng) -> Result<(), String>) {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("POLICY_SEED") {
        property(&mut Rng::new(seed)).unwrap_or_else(|e| panic!("POLICY_SEED={seed}: {e}"));
        return;
    }
    for seed in 0..number("POLICY_CASES").unwrap_or(cases) {
        property(&mut Rng::new(seed)).unwrap_or_else(|e| panic!("POLICY_SEED={seed}: {e}"));
    }
}

#[test]
fn compiled_tables_equal_the_evaluator() {
    for_seeds(1500, |rng| {
        let world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        node.discover(&world)?;
        let samples = samples(rng, &world, &node.endpoints, 120);
        let planned = node.update(&world, &[])?;
        assert!(planned.busy.is_none() && planned.refusals.is_empty(), "{planned:?}");
        node.check(&world, &samples)
    });
}

/// Many Services whose backends change, on a node that judges by them.
#[test]
fn services_judged_by_their_backends_equal_the_evaluator() {
    let counted = std::sync::atomic::AtomicUsize::new(0);
    for_seeds(400, |rng| {
        let mut world = worlds::world(rng);
        world.apply(Delta::ServiceMode(ServiceMode::Backends));
        worlds::add_services(rng, &mut world);
        let mut node = SimNode::new(TINY);
        for _ in 0..5 {
            let given_up = node.discover(&world)?;
            let samples = front_samples(rng, &world, &node.endpoints, 60);
            let planned = node.update(&world, &samples)?;
            if let Some(table) = planned.busy {
                node.settle(&samples)?;
                let again = node.update(&world, &samples)?;
                assert!(again.busy.is_none(), "{table} twice");
            }
            node.check(&world, &samples)?;
            let passing = samples.iter().filter(|s| node.verdict(s).action() == action::ALLOW);
            counted.fetch_add(passing.count(), std::sync::atomic::Ordering::Relaxed);
            for slot in given_up {
                node.unhook(slot);
            }
            worlds::add_services(rng, &mut world);
            worlds::mutate(rng, &mut world);
        }
        Ok(())
    });
    let passing = counted.into_inner();
    assert!(passing > 100 || std::env::var_os("POLICY_SEED").is_some(), "only {passing} samples pass");
}

#[test]
fn every_prefix_of_every_plan_is_the_old_or_the_new_world() {
    for_seeds(250, |rng| {
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        for _ in 0..6 {
            let given_up = node.discover(&world)?;
            let samples = samples(rng, &world, &node.endpoints, 40);
            let planned = node.update(&world, &samples)?;
            if let Some(table) = planned.busy {
                node.settle(&samples)?;
                let again = node.update(&world, &samples)?;
                assert!(again.busy.is_none(), "{table} twice");
            }
            node.check(&world, &samples)?;
            for slot in given_up {
                node.unhook(slot);
            }
            if rng.percent(60) {
                let late = u64::try_from(rng.below(3)).unwrap_or(0);
                node.collect_up_to(node.planner.tables.number().saturating_sub(late), &samples)?;
                node.check(&world, &samples)?;
            }
            worlds::mutate(rng, &mut world);
        }
        Ok(())
    });
}

#[test]
fn a_restarted_agent_has_nothing_to_do() {
    for_seeds(250, |rng| {
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        for _ in 0..3 {
            let given_up = node.discover(&world)?;
            node.update(&world, &[])?;
            for slot in given_up {
                node.unhook(slot);
            }
            if rng.percent(50) {
                node.settle(&[])?;
            }
            node.restart();
            let again = node.update(&world, &[])?;
            assert!(again.plan.is_empty(), "{:?}", again.plan);
            let samples = samples(rng, &world, &node.endpoints, 40);
            node.check(&world, &samples)?;
            worlds::mutate(rng, &mut world);
        }
        Ok(())
    });
}

#[test]
fn what_somebody_else_put_into_the_tables_is_mended_by_the_next_agent() {
    for_seeds(250, |rng| {
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        node.discover(&world)?;
        node.update(&world, &[])?;
        node.settle(&[])?;
        node.meddle(rng);
        if rng.percent(50) {
            worlds::mutate(rng, &mut world);
            node.discover(&world)?;
        }
        let samples = samples(rng, &world, &node.endpoints, 60);
        node.restart();
        node.update(&world, &[])?;
        node.check(&world, &samples)?;
        node.settle(&samples)?;
        node.check(&world, &samples)
    });
}

#[test]
fn tables_are_empty_after_churn() {
    for_seeds(100, |rng| {
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        for round in 0..5 {
            if round == 4 {
                worlds::clear(&mut world);
            }
            let given_up = node.discover(&world)?;
            if node.update(&world, &[])?.busy.is_some() {
                node.settle(&[])?;
                node.update(&world, &[])?;
            }
            for slot in given_up {
                node.unhook(slot);
            }
            worlds::mutate(rng, &mut world);
        }
        node.settle(&[])?;
        let dump = node.kernel.dump(0);
        assert!(dump.hosts.is_empty() && dump.prefixes.is_empty() && dump.endpoints.is_empty(), "{dump:?}");
        for usage in node.planner.tables.usage() {
            assert_eq!(usage.used, 0, "{usage:?}");
        }
        Ok(())
    });
}

#[test]
fn an_interrupted_plan_is_taken_up_again() {
    for_seeds(250, |rng| {
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        for _ in 0..4 {
            let given_up = node.discover(&world)?;
            let samples = samples(rng, &world, &node.endpoints, 30);
            if rng.percent(60) {
                let stop = rng.below(30);
                node.interrupt(&world, stop)?;
                node.restart();
            }
            let mut planned = node.update(&world, &samples)?;
            while planned.busy.is_some() {
                node.settle(&samples)?;
                planned = node.update(&world, &samples)?;
            }
            node.check(&world, &samples)?;
            for slot in given_up {
                node.unhook(slot);
            }
            node.settle(&samples)?;
            node.check(&world, &samples)?;
            worlds::mutate(rng, &mut world);
        }
        Ok(())
    });
}

/// Tables too small for many worlds: what fits is enforced to the letter, namespaces that do not are never more open
/// than their policies, and nothing panics or gets stuck.
#[test]
fn what_does_not_fit_is_held_back() {
    let mut held = 0;
    let counted = std::sync::atomic::AtomicU32::new(0);
    for_seeds(200, |rng| {
        let limits = Limits {
            rows: 2 + small(rng, 8),
            classes: 1 + small(rng, 16),
            hosts: 8 + small(rng, 24),
            prefixes: 2 + small(rng, 12),
            rule_sets: 1 + small(rng, 20),
            intervals: 1 + small(rng, 40),
            intervals_per_set: 1 + small(rng, 4),
            ..TINY
        };
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(limits);
        for _ in 0..4 {
            let given_up = node.discover(&world)?;
            let samples = samples(rng, &world, &node.endpoints, 40);
            let mut planned = node.update(&world, &samples)?;
            for _ in 0..3 {
                if planned.busy.is_some() || !planned.refusals.is_empty() {
                    node.settle(&samples)?;
                    planned = node.update(&world, &samples)?;
                }
            }
            if let Some(table) = planned.busy {
                return Err(format!("stuck: {table} with {limits:?}"));
            }
            counted.fetch_add(u32::from(!planned.refusals.is_empty()), std::sync::atomic::Ordering::Relaxed);
            node.check_held(&planned.refusals, &samples)?;
            for slot in given_up {
                node.unhook(slot);
            }
            worlds::mutate(rng, &mut world);
        }
        Ok(())
    });
    held += counted.into_inner();
    assert!(held > 0 || std::env::var_os("POLICY_SEED").is_some(), "no world was too large");
}

fn small(rng: &mut Rng, bound: usize) -> u32 {
    1 + u32::try_from(rng.below(bound)).unwrap_or(0)
}

#[test]
fn the_agent_knows_what_the_kernel_holds_and_finds_what_somebody_else_put_there() {
    for_seeds(250, |rng| {
        let mut world = worlds::world(rng);
        let mut node = SimNode::new(TINY);
        let differences = |node: &SimNode| node.planner.tables.expected().differences(&node.kernel.dump(0));
        for _ in 0..4 {
            let given_up = node.discover(&world)?;
            let planned = node.update(&world, &[])?;
            assert_eq!(differences(&node), [], "after a plan");
            for slot in given_up {
                node.unhook(slot);
            }
            if planned.busy.is_some() || rng.percent(50) {
                node.collect(&[])?;
                assert_eq!(differences(&node), [], "after collecting");
            }
            worlds::mutate(rng, &mut world);
        }
        node.settle(&[])?;
        node.discover(&world)?;
        if node.update(&world, &[])?.busy.is_some() {
            return Ok(());
        }
        let epoch = |node: &SimNode, slot| node.planner.tables.endpoint(slot).map_or(0, |word| word.epoch);
        let before: Vec<(u16, u32)> =
            node.planner.tables.slots().map(|slot| (slot, epoch(&node, slot))).collect();
        let held = node.kernel.dump(0);
        node.meddle(rng);
        // What somebody put there may be what was there.
        if node.kernel.dump(0) == held {
            return Ok(());
        }
        assert_ne!(differences(&node), [], "nothing is found");
        node.read_back();
        let samples = samples(rng, &world, &node.endpoints, 60);
        if node.update(&world, &[])?.busy.is_some() {
            node.settle(&[])?;
            node.update(&world, &[])?;
        }
        assert_eq!(differences(&node), [], "it is still there");
        node.check(&world, &samples)?;
        node.settle(&samples)?;
        node.check(&world, &samples)?;
        for (slot, old) in
            before.into_iter().filter(|(slot, _)| node.endpoints.iter().any(|e| e.slot == *slot))
        {
            assert!(epoch(&node, slot) > old, "flows of slot {slot} are not judged anew");
        }
        Ok(())
    });
}
