//! One open kernel map: elements by key with their lengths checked, and memory-mapped words.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use aya_obj::generated::bpf_cmd;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY;
use policy_common::abi::{Cgroup, Counter, EndpointStat, Flow, FlowKey4, FlowKey6, LocalKey};

use super::bpf;
use super::error::{Error, Result};
use super::spec::Spec;

/// Only insert: the key must not be there.
pub(super) const NO_EXIST: u64 = 1;
/// Insert or replace.
pub(super) const ANY: u64 = 0;

/// Types that are nothing but their bytes: `repr(C)` or primitive, no padding, any bit pattern valid.
///
/// # Safety
/// The type must be as described.
pub(super) unsafe trait Plain: Copy + Default {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: integers without padding; the size is asserted beside each type.
unsafe impl Plain for LocalKey {}
// SAFETY: as above.
unsafe impl Plain for Cgroup {}
// SAFETY: as above.
unsafe impl Plain for FlowKey4 {}
// SAFETY: as above.
unsafe impl Plain for FlowKey6 {}
// SAFETY: as above.
unsafe impl Plain for Flow {}
// SAFETY: as above.
unsafe impl Plain for Counter {}
// SAFETY: as above.
unsafe impl Plain for EndpointStat {}

/// The value's bytes.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: the type has no padding, so all of its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value whose bytes these are; `None` when there are fewer.
pub(super) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: the slice is long enough, any bit pattern is valid, and the read asks for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// An open map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    spec: Spec,
    /// Bytes that the kernel reads or writes for one value: all CPUs of a per-CPU map.
    value: usize,
}

impl Map {
    /// Takes a descriptor that is known to be a map of this shape.
    pub fn new(fd: OwnedFd, spec: Spec) -> Result<Self> {
        let one = spec.value as usize;
        let value = if spec.kind == BPF_MAP_TYPE_PERCPU_ARRAY {
            let cpus = bpf::possible_cpus().map_err(|e| Error::path("read", "/sys/devices/system/cpu", e))?;
            one.next_multiple_of(8) * cpus
        } else {
            one
        };
        Ok(Self { fd, spec, value })
    }

    /// Shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Another descriptor of the map.
    pub fn try_clone_fd(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(self.failed("duplicate the descriptor of"))
    }

    /// Inserts an element. `NO_EXIST` fails with `AlreadyExists` when the key is there.
    pub fn insert(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check(key, value.len())?;
        bpf::element(
            bpf_cmd::BPF_MAP_UPDATE_ELEM,
            self.fd.as_fd(),
            key.as_ptr(),
            value.as_ptr().cast_mut(),
            flags,
        )
    }

    /// Removes an element; `NotFound` when there is none.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.check(key, self.value)?;
        bpf::element(bpf_cmd::BPF_MAP_DELETE_ELEM, self.fd.as_fd(), key.as_ptr(), std::ptr::null_mut(), 0)
    }

    /// The value of a key; for a per-CPU map the values of all CPUs, each padded to 8 bytes.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        self.check(key, value.len())?;
        let cmd = bpf_cmd::BPF_MAP_LOOKUP_ELEM;
        match bpf::element(cmd, self.fd.as_fd(), key.as_ptr(), value.as_mut_ptr(), 0) {
            Ok(()) => Ok(Some(value)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All elements of a map whose values fit one CPU, by key. Elements that come or go meanwhile may be missed; the
    /// walk ends after as many steps as the map has entries, because a removed key makes the kernel start over.
    pub fn elements(&self) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut key = vec![0; self.spec.key as usize];
        let mut from = std::ptr::null();
        for _ in 0..=self.spec.entries {
            let mut next = vec![0; key.len()];
            let cmd = bpf_cmd::BPF_MAP_GET_NEXT_KEY;
            match bpf::element(cmd, self.fd.as_fd(), from, next.as_mut_ptr(), 0) {
                Ok(()) => key = next,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
            }
            from = key.as_ptr();
            if let Some(value) = self.get(&key)? {
                found.insert(key.clone(), value);
            }
        }
        Ok(found)
    }

    /// Values of all CPUs of one entry of a per-CPU array.
    pub(super) fn per_cpu<T: Plain>(&self, index: u32) -> Result<Vec<T>> {
        let read = self.get(bytes_of(&index)).map_err(self.failed("read"))?;
        let bytes = read.ok_or_else(|| self.outside("entry", u64::from(index), self.spec.entries))?;
        let stride = size_of::<T>().next_multiple_of(8);
        Ok(bytes.chunks_exact(stride).filter_map(from_bytes).collect())
    }

    /// Maps a `BPF_F_MMAPABLE` array into memory.
    pub fn words(&self) -> Result<Words> {
        Words::new(self.fd.as_fd(), self.spec).map_err(self.failed("memory-map"))
    }

    /// Turns the kernel's answer into an error that names the map.
    pub fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let map = self.spec.name;
        move |source| Error::Map { action, map, source }
    }

    fn outside(&self, what: &'static str, index: u64, limit: u32) -> Error {
        Error::Bounds { map: self.spec.name, what, index, limit: u64::from(limit) }
    }

    /// The kernel reads and writes as many bytes as the map says, so slices of another length must not reach it.
    fn check(&self, key: &[u8], value: usize) -> io::Result<()> {
        if key.len() == self.spec.key as usize && value == self.value {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "key or value of the wrong length"))
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A `BPF_F_MMAPABLE` array as words that the kernel's programs read while we write them.
///
/// The mapping keeps the map alive.
#[derive(Debug)]
pub struct Words {
    base: NonNull<u8>,
    length: NonZeroUsize,
    spec: Spec,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only reached through atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    fn new(fd: BorrowedFd<'_>, spec: Spec) -> io::Result<Self> {
        // SAFETY: no pointers are involved.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
        let length = (Self::stride(&spec) * spec.entries as usize).next_multiple_of(page);
        let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), length.get(), protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length, spec })
    }

    /// Word `word` of value `index`.
    fn word(&self, index: u32, word: u32) -> Result<&AtomicU64> {
        self.bound("value", index, self.spec.entries)?;
        self.bound("word", word, self.spec.value.div_ceil(8))?;
        let offset = index as usize * Self::stride(&self.spec) + word as usize * 8;
        // SAFETY: the offset is inside the mapping (checked above) and a multiple of 8; the mapping lives as long as
        // `self`, and the kernel accesses it by whole words.
        Ok(unsafe { self.base.add(offset).cast::<AtomicU64>().as_ref() })
    }

    /// Reads a word.
    pub fn load(&self, index: u32, word: u32) -> Result<u64> {
        Ok(self.word(index, word)?.load(Ordering::Acquire))
    }

    /// Stores a word: everything written before is seen by whoever sees it.
    pub fn store(&self, index: u32, word: u32, value: u64) -> Result<()> {
        self.word(index, word)?.store(value, Ordering::Release);
        Ok(())
    }

    /// The array as one run of 16-bit cells, for values without padding.
    pub fn cell(&self, index: u32) -> Result<&AtomicU16> {
        self.bound("cell", index, self.spec.entries * (self.spec.value / 2))?;
        // SAFETY: the offset is inside the mapping (checked above; values are multiples of 8 bytes) and even.
        Ok(unsafe { self.base.add(index as usize * 2).cast::<AtomicU16>().as_ref() })
    }

    fn bound(&self, what: &'static str, index: u32, limit: u32) -> Result<()> {
        if index < limit {
            return Ok(());
        }
        Err(Error::Bounds { map: self.spec.name, what, index: u64::from(index), limit: u64::from(limit) })
    }

    fn stride(spec: &Spec) -> usize {
        spec.value.next_multiple_of(8) as usize
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length.get()) };
    }
}
