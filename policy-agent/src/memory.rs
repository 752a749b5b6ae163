//! Bounds on what glibc's allocator keeps of memory that the agent has freed.

/// One heap for all threads; call it before there are others. Each thread gets a heap of its own otherwise, and pages of a
/// list that one thread reads and another one lets go stay in several of them: 63 MB with 10,000 pods in place of 42 MB.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call without pointers, before there are other threads.
    unsafe {
        // Nothing depends on whether it is heeded.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free pages back to the kernel when it is dropped: behind work that needs much memory for a moment. By itself the
/// allocator gives back the end of the heap alone: a few bytes that another thread takes meanwhile keep all that is freed
/// before them. It takes about a millisecond for 20 MB.
#[derive(Debug)]
pub(crate) struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: a call without pointers; it takes the allocator's locks as any other call does.
        unsafe {
            // Whether there was anything to give back does not matter.
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    const PAGE: usize = 4096;

    /// How many of the pages at these addresses are in memory. Other tests take and free memory meanwhile, so what the
    /// whole process has says nothing.
    fn resident(addresses: &[usize]) -> usize {
        let map = File::open("/proc/self/pagemap").unwrap();
        let present = |address: &&usize| {
            let mut word = [0; 8];
            map.read_exact_at(&mut word, (**address / PAGE * 8) as u64).unwrap();
            u64::from_ne_bytes(word) >> 63 == 1
        };
        addresses.iter().filter(present).count()
    }

    #[test]
    fn what_lies_before_something_in_use_is_given_back() {
        let much: Vec<Vec<u8>> = (0..8192).map(|_| vec![1; PAGE]).collect();
        let last = vec![1_u8; PAGE];
        let places: Vec<usize> = much.iter().map(|one| one.as_ptr().addr()).collect();
        assert_eq!(resident(&places), places.len(), "the pages are in use");
        drop(much);
        drop(GiveBack);
        let kept = resident(&places);
        assert!(kept < places.len() / 4, "{kept} of {} pages are kept", places.len());
        drop(last);
    }
}
