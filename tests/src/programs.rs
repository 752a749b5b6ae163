//! All programs of a datapath, for `BPF_PROG_TEST_RUN`: those of the hooks as the datapath loaded them, and those that
//! are never attached.
//!
//! The verifier's walk through the hooks' programs takes seconds on an emulated machine, so they are not loaded twice.

use anyhow::{Context, Result, bail};
use aya::{Ebpf, EbpfLoader, maps::Map as Loaded, programs::SchedClassifier};
use aya_obj::generated::bpf_map_type;
use policy_agent::datapath::{
    Datapath, Hook, Map, OBJECT, bpf,
    spec::{MapId, Spec},
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// The programs of the hooks, in the order in which `retag` finds them.
const HOOKED: [(&str, Hook); 3] = [("pod_in", Hook::In), ("pod_out", Hook::Out), ("node_exit", Hook::Exit)];
/// The others.
const OTHERS: [&str; 3] = ["empty", "retag", "tick"];

/// The table from which `retag` calls them.
const PROGS: Spec = Spec {
    name: "PROGS",
    kind: bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY,
    key: 4,
    value: 4,
    entries: HOOKED.len() as u32,
    flags: 0,
    revision: 0,
};

/// Programs by name.
#[derive(Debug)]
pub struct Programs {
    fds: BTreeMap<&'static str, OwnedFd>,
}

impl Programs {
    /// The programs of this datapath, and the others on its maps.
    pub fn new(datapath: &Datapath) -> Result<Self> {
        let mut fds = BTreeMap::new();
        for (name, hook) in HOOKED {
            fds.insert(name, datapath.hooks.program(hook)?);
        }
        let mut object = on_maps_of(datapath)?;
        for name in OTHERS {
            let program: &mut SchedClassifier = object
                .program_mut(name)
                .with_context(|| format!("the object has no '{name}'"))?
                .try_into()?;
            program.load().with_context(|| format!("load program '{name}'"))?;
            fds.insert(name, program.fd()?.as_fd().try_clone_to_owned()?);
        }
        let Some(Loaded::ProgramArray(table)) = object.map("PROGS") else { bail!("the object has no PROGS") };
        let table = Map::new(table.fd().as_fd().try_clone_to_owned()?, PROGS)?;
        for (index, (name, _)) in HOOKED.into_iter().enumerate() {
            table.insert(&(index as u32).to_ne_bytes(), &fds[name].as_raw_fd().to_ne_bytes(), 0)?;
        }
        // The programs hold the map; a table of programs is emptied when user space has let go of it.
        std::mem::forget(table);
        Ok(Self { fds })
    }

    /// The programs of control groups too, as the datapath loads them, and an empty one.
    pub fn add_sockets(&mut self, datapath: &Datapath) -> Result<()> {
        if self.fds.contains_key("cgroup_in") {
            return Ok(());
        }
        let [out, inward] = datapath.groups.programs()?;
        self.fds.extend([("cgroup_out", out), ("cgroup_in", inward)]);
        // return 1
        let code = [bpf::instruction(0xb7, 0, 0, 1), bpf::instruction(0x95, 0, 0, 0)];
        self.fds.insert("empty_group", bpf::load_group("empty_group", &code)?);
        Ok(())
    }

    /// A program, to run it or attach it.
    pub fn get(&self, name: &str) -> Result<BorrowedFd<'_>> {
        Ok(self.fds.get(name).with_context(|| format!("the object has no '{name}'"))?.as_fd())
    }
}

fn on_maps_of(datapath: &Datapath) -> Result<Ebpf> {
    let pins = datapath.executor.pins();
    let paths: Vec<_> = MapId::ALL.iter().map(|id| (id.spec().name, pins.map(*id))).collect();
    let mut loader = EbpfLoader::new();
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    loader.load(OBJECT).context("load the object")
}
