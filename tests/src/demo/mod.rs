//! The demo: a node made of namespaces, the manifests of `deploy/examples/seeds`, a table of what was expected and
//! seen, and then drops that explain themselves while a policy goes and comes back under traffic.

mod live;
pub mod stop;
mod table;

use crate::{backend::Wire, net::Topology, scenario};
use anyhow::{Context, Result};
use std::time::Instant;
use table::Told;

/// The scenarios of the first part, in the order of the tour.
const TOUR: &[&str] =
    &["default-deny", "three-tier", "prometheus-scrape", "and-or", "payment-egress", "test-network-policy"];

/// Runs the demo. `false`: a pair differed, or a drop was not explained.
pub fn run() -> Result<bool> {
    stop::watch()?;
    let start = Instant::now();
    println!(
        "A node of network namespaces: pods with a /32 and a link of their own, as the ptp plugin makes them."
    );
    println!("In its middle runs policy-agent, on a folder of manifests.");
    println!("Tables show expected/seen: + passes, . is dropped, ! in between where they differ.\n");
    let mut told = Told::new(Wire::start(Topology::Ptp).context("start the node and its agent")?);
    let mut good = true;
    for name in TOUR {
        stop::check()?;
        let path = scenario::root().join(format!("tests/scenarios/seeds/{name}.yaml"));
        good &= told.show(&scenario::load(&path)?)?;
    }
    let (pairs, wrong) = told.totals();
    println!("{pairs} pairs asked on the wire, {wrong} differ from the truth tables.\n");
    drop(told);
    good &= live::show().context("the live part")?;
    println!("\nDone in {} s; the namespaces, pins and programs are gone.", start.elapsed().as_secs());
    Ok(good)
}
