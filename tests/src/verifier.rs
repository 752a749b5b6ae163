//! How much work the object's programs are for the verifier, asked of its log: kernels before 5.16 tell it nowhere
//! else.

use anyhow::{Context, Result};
use aya_obj::{
    Function, Object, ProgramSection,
    btf::BtfFeatures,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type},
};
use policy_agent::datapath::{bpf, spec::Spec};
use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

/// Statistics in the log, and nothing else.
const STATISTICS: u32 = 4;

/// What the verifier says of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Name of the program.
    pub program: String,
    /// Instructions that it processed, also of a program that it refused in the end.
    pub processed: u64,
    /// Why it refused the program.
    pub refused: Option<String>,
}

/// Shows each program of the object to the verifier, with maps that go again.
pub fn walk(object: &[u8]) -> Result<Vec<Walk>> {
    raise_memory_limit();
    let mut object = Object::parse(object).context("parse the object")?;
    let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
    let mut fds = Vec::new();
    for (name, map) in &maps {
        fds.push(create(map).with_context(|| format!("create {name}"))?);
    }
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    let with_fds = maps.iter().zip(&fds).map(|((name, map), fd)| (name.as_str(), fd.as_raw_fd(), map));
    object.relocate_maps(with_fds, &text)?;
    object.relocate_calls(&text)?;
    let types = types(&mut object)?;
    let mut walks = Vec::new();
    for (name, program) in &object.programs {
        let function = object.functions.get(&program.function_key()).context("a program without code")?;
        let kind = match &program.section {
            ProgramSection::CgroupSkb { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, attach_type.map(bpf_attach_type::from))
            }
            _ => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None),
        };
        let (log, refused) = load(function, kind, &types)?;
        let processed =
            count(&log).with_context(|| format!("the verifier's log of {name} has no number: {log}"))?;
        let refused = refused.map(|error| format!("{error}: {}", last_lines(&log)));
        walks.push(Walk { program: name.clone(), processed, refused });
    }
    walks.sort_by(|a, b| a.program.cmp(&b.program));
    Ok(walks)
}

fn create(map: &aya_obj::Map) -> Result<OwnedFd> {
    let kind = map.map_type().try_into().ok().context("a type of map that is not known")?;
    let (key, value, entries) = (map.key_size(), map.value_size(), map.max_entries());
    let spec = Spec { name: "verifier", kind, key, value, entries, flags: map.map_flags(), revision: 0 };
    let template = map.inner().map(|inner| create(&inner)).transpose()?;
    Ok(bpf::create_map(&spec, entries, template.as_ref().map(AsFd::as_fd))?)
}

/// Before Linux 5.11 maps are charged to this limit.
fn raise_memory_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is valid for the call. Where it fails the creation of a map tells.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// The object's types in the kernel. They say which functions are global: the verifier walks those once each, and
/// without types once for every path to a call.
fn types(object: &mut Object) -> Result<OwnedFd> {
    // What every kernel from 5.10 on understands.
    let features = BtfFeatures::new(true, true, true, false, false, false, false, false);
    let types = object.fixup_and_sanitize_btf(&features)?.context("the object has no types")?.to_bytes();
    // SAFETY: the union consists of integers: all zeroes is a valid value of each of its parts.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: as above.
    let part = unsafe { &mut attr.__bindgen_anon_7 };
    part.btf = types.as_ptr() as u64;
    part.btf_size = u32::try_from(types.len()).context("too many types")?;
    call(bpf_cmd::BPF_BTF_LOAD, &mut attr).context("load the types")
}

/// bpf(2) for a command that returns a descriptor.
fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: callers keep what the attribute points to alive, with the sizes given.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attr, size_of::<bpf_attr>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Loads a program; the verifier's log, and the error when it was refused.
fn load(
    function: &Function,
    (kind, attach): (bpf_prog_type, Option<bpf_attach_type>),
    types: &OwnedFd,
) -> Result<(String, Option<io::Error>)> {
    let instructions = &function.instructions;
    let functions = function.func_info.func_info_bytes();
    let mut log = vec![0u8; 1 << 16];
    // SAFETY: the union consists of integers: all zeroes is a valid value of each of its parts.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: as above.
    let program = unsafe { &mut attr.__bindgen_anon_3 };
    program.prog_type = kind as u32;
    program.expected_attach_type = attach.map_or(0, |attach| attach as u32);
    program.insns = instructions.as_ptr() as u64;
    program.insn_cnt = instructions.len() as u32;
    program.license = c"Dual MIT/GPL".as_ptr() as u64;
    program.log_level = STATISTICS;
    program.log_buf = log.as_mut_ptr() as u64;
    program.log_size = log.len() as u32;
    program.prog_btf_fd = types.as_raw_fd() as u32;
    program.func_info = functions.as_ptr() as u64;
    program.func_info_cnt = u32::try_from(function.func_info.len()).context("too many functions")?;
    program.func_info_rec_size =
        u32::try_from(function.func_info_rec_size).context("too long a function record")?;
    let error = call(bpf_cmd::BPF_PROG_LOAD, &mut attr).err();
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    Ok((String::from_utf8_lossy(&log[..end]).into_owned(), error))
}

/// The end of a log, where the reason stands.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
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
