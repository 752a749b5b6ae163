//! How much work the object's programs are for the verifier, asked of its log: kernels before 5.16 tell it nowhere
//! else.

use anyhow::{Context, Result};
use aya_obj::{
    Object,
    generated::{bpf_attr, bpf_cmd, bpf_prog_type},
};
use policy_agent::datapath::{
    Executor, bpf,
    spec::{MapId, Spec},
};
use std::{
    collections::BTreeMap,
    io,
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Statistics in the log, and nothing else.
const STATISTICS: u32 = 4;

/// Instructions that the verifier processes for each program of the object, with the maps of this datapath.
pub fn processed(executor: &Executor, object: &[u8]) -> Result<BTreeMap<String, u64>> {
    let mut object = Object::parse(object).context("parse the object")?;
    let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
    let mut fds = Vec::new();
    for (name, map) in &maps {
        let known = MapId::ALL.iter().find(|id| id.spec().name == name);
        fds.push(match known {
            Some(id) => executor.map(*id).try_clone_fd()?,
            None => create(map).with_context(|| format!("create {name}"))?,
        });
    }
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    let with_fds = maps.iter().zip(&fds).map(|((name, map), fd)| (name.as_str(), fd.as_raw_fd(), map));
    object.relocate_maps(with_fds, &text)?;
    object.relocate_calls(&text)?;
    let mut counts = BTreeMap::new();
    for (name, program) in &object.programs {
        let function = object.functions.get(&program.function_key()).context("a program without code")?;
        let log = load(&function.instructions).with_context(|| format!("load {name}"))?;
        let count =
            count(&log).with_context(|| format!("the verifier's log of {name} names no number: {log}"))?;
        counts.insert(name.clone(), count);
    }
    Ok(counts)
}

/// A map that only the object knows.
fn create(map: &aya_obj::Map) -> Result<OwnedFd> {
    let kind = map.map_type().try_into().ok().context("a type of map that is not known")?;
    let (key, value, entries) = (map.key_size(), map.value_size(), map.max_entries());
    let spec = Spec { name: "private", kind, key, value, entries, flags: map.map_flags(), revision: 0 };
    Ok(bpf::create_map(&spec, entries, None)?)
}

/// Loads a program and hands back the verifier's log.
fn load(instructions: &[aya_obj::generated::bpf_insn]) -> Result<String> {
    let mut log = vec![0u8; 1 << 16];
    // SAFETY: the union consists of integers: all zeroes is a valid value of each of its parts.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: as above.
    let program = unsafe { &mut attr.__bindgen_anon_3 };
    program.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    program.insns = instructions.as_ptr() as u64;
    program.insn_cnt = u32::try_from(instructions.len()).context("too long a program")?;
    program.license = c"Dual MIT/GPL".as_ptr() as u64;
    program.log_level = STATISTICS;
    program.log_buf = log.as_mut_ptr() as u64;
    program.log_size = 1 << 16;
    let cmd = bpf_cmd::BPF_PROG_LOAD as u32;
    // SAFETY: the attribute and what it points to outlive the call, with the sizes given.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, cmd, &raw mut attr, size_of::<bpf_attr>()) };
    let error = io::Error::last_os_error();
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]).into_owned();
    if fd < 0 {
        return Err(error).context(log);
    }
    // SAFETY: the call has just returned this descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(log)
}

/// The number in "processed 49732 insns (limit 1000000) ...".
fn count(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("processed "))?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn the_log_names_the_number() {
        assert_eq!(
            count("stack depth 304\nprocessed 49732 insns (limit 1000000) max_states 9\n"),
            Some(49_732)
        );
        assert_eq!(count("insns processed 10\nprocessed 10 insns (limit 1000000)\n"), Some(10));
        assert_eq!(count("R1 type=ctx expected=fp"), None);
    }
}
