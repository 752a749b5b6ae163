//! A loaded datapath that the tests of one process hand on to each other, empty.
//!
//! The verifier's walk through the programs takes a fifth of a second, and seconds on an emulated machine. What a test
//! left in the maps is wiped before the next one gets them.

use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use anyhow::{Context, Result};
use aya_obj::generated::bpf_map_type::{
    BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS as MAPS, BPF_MAP_TYPE_HASH as HASH,
    BPF_MAP_TYPE_LPM_TRIE as TRIE, BPF_MAP_TYPE_LRU_HASH as LRU, BPF_MAP_TYPE_PERCPU_ARRAY as PER_CPU,
};
use policy_agent::datapath::{Config, Datapath, Map, OBJECT, load, open_maps, spec::MapId};

use crate::{net::Netns, pins::PinDir, programs::Programs};

/// Those that nobody has at the moment.
static FREE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// A datapath with its programs, under pins of its own.
#[derive(Debug)]
pub struct Loaded {
    /// Maps and hooks.
    pub datapath: Datapath,
    /// All programs, to run them.
    pub programs: Programs,
    pins: PinDir,
}

/// A datapath until it is dropped.
#[derive(Debug)]
pub struct Lent(Option<Loaded>);

/// An empty datapath: one that another test has done with, or a new one.
pub fn lend() -> Result<Lent> {
    let free = free().pop();
    let loaded = match free {
        Some(used) => used.emptied().context("empty the maps of an earlier test")?,
        None => Loaded::new()?,
    };
    Ok(Lent(Some(loaded)))
}

fn free() -> MutexGuard<'static, Vec<Loaded>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Loaded {
    fn new() -> Result<Self> {
        static AT_EXIT: Once = Once::new();
        // What a static holds is not dropped when the process ends, and its pins would stay.
        // SAFETY: the function may be called at exit: it takes a lock that nobody holds for long, and removes files.
        AT_EXIT.call_once(|| unsafe {
            libc::atexit(remove_all);
        });
        let pins = PinDir::new(&Arc::new(Netns::of_this_thread()?))?;
        let datapath = load(&Config::new(pins.path()), OBJECT).context("load the datapath")?;
        let programs = Programs::new(&datapath)?;
        Ok(Self { datapath, programs, pins })
    }

    /// The same maps without content, opened anew: nothing that the writer knew of them is left either.
    fn emptied(mut self) -> Result<Self> {
        while self.datapath.ring.next_event().is_some() {}
        // The rules' counts go on: nobody compares them, and they are nine tenths of all that can only be read one by one.
        for id in MapId::ALL.into_iter().filter(|id| *id != MapId::RuleHits) {
            wipe(self.datapath.executor.map(id))?;
        }
        let (executor, ring, report) = open_maps(self.pins.path())?;
        anyhow::ensure!(report.created.is_empty(), "maps are gone: {report:?}");
        (self.datapath.executor, self.datapath.ring) = (executor, ring);
        Ok(self)
    }
}

/// Removes every element, or makes it zero.
fn wipe(map: &Map) -> Result<()> {
    let spec = map.spec();
    match spec.kind {
        HASH | LRU | TRIE | MAPS => {
            for key in map.elements().map_err(map.failed("read"))?.keys() {
                map.remove(key).map_err(map.failed("remove from"))?;
            }
        }
        ARRAY => zero(map)?,
        PER_CPU => {
            for (key, value) in map.elements().map_err(map.failed("read"))? {
                if value.iter().any(|byte| *byte != 0) {
                    map.insert(&key, &vec![0; value.len()], 0).map_err(map.failed("write"))?;
                }
            }
        }
        // The ring, which was read to its end.
        _ => {}
    }
    Ok(())
}

/// Zeroes a memory-mapped array at once: word by word takes longer than the verifier that is to be spared.
fn zero(map: &Map) -> Result<()> {
    let spec = map.spec();
    let length = (spec.value.next_multiple_of(8) as usize * spec.entries as usize).next_multiple_of(4096);
    let fd = map.try_clone_fd()?;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, of as many bytes as the array has; it is written
    // within its length, and nobody keeps it. No program runs and no writer writes meanwhile.
    unsafe {
        let base = libc::mmap(std::ptr::null_mut(), length, rights, libc::MAP_SHARED, fd.as_raw_fd(), 0);
        anyhow::ensure!(base != libc::MAP_FAILED, "map {}: {}", spec.name, std::io::Error::last_os_error());
        base.cast::<u8>().write_bytes(0, length);
        libc::munmap(base, length);
    }
    Ok(())
}

extern "C" fn remove_all() {
    free().clear();
}

impl Lent {
    /// With the programs of control groups.
    pub fn with_sockets(&mut self) -> Result<()> {
        let Loaded { datapath, programs, .. } = &mut **self;
        programs.add_sockets(datapath)
    }
}

impl Deref for Lent {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        self.0.as_ref().expect("it is given back on drop only")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Loaded {
        self.0.as_mut().expect("it is given back on drop only")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        free().extend(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_agent::datapath::Endpoint;
    use policy_common::abi::{EndpointWord, meta_words};
    use policy_engine::plan::{Op, Plan};

    fn elements(datapath: &Datapath) -> Vec<(MapId, usize)> {
        let filled = |id: &MapId| {
            let elements = datapath.executor.map(*id).elements().unwrap();
            elements.values().filter(|value| value.iter().any(|byte| *byte != 0)).count()
        };
        MapId::ALL
            .into_iter()
            .filter(|id| !matches!(id, MapId::Events | MapId::RuleHits))
            .map(|id| (id, filled(&id)))
            .collect()
    }

    #[test]
    fn the_next_test_finds_nothing() {
        let mut first = lend().unwrap();
        let new = elements(&first.datapath);
        let executor = &mut first.datapath.executor;
        executor
            .create_endpoint(&Endpoint {
                slot: 9,
                id: 3,
                ifindex: 1,
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                config: 0,
                pickup: std::time::Duration::from_secs(1),
            })
            .unwrap();
        executor.set_interface(1, 9).unwrap();
        executor.set_meta(meta_words::FLAGS, 3).unwrap();
        let word = EndpointWord { epoch: 4, ingress_row: 2, egress_row: 2 };
        let address = "10.0.0.2".parse().unwrap();
        let ops = vec![Op::Endpoint { slot: 9, word }, Op::HostInsert { address, slot: 5 }];
        executor.apply(&Plan { number: 1, ops }).unwrap();
        assert_ne!(elements(&first.datapath), new);
        let number = first.pins.path().to_owned();
        drop(first);

        let second = lend().unwrap();
        assert_eq!(second.pins.path(), number);
        assert_eq!(elements(&second.datapath), new);
        assert!(second.datapath.executor.endpoints().unwrap().is_empty());
    }
}
