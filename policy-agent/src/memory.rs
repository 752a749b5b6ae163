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
    use super::*;

    /// Memory of this process in bytes that no file backs.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn what_lies_before_something_in_use_is_given_back() {
        const SIZE: usize = 64 << 20;
        let before = resident();
        let much: Vec<Vec<u8>> = (0..SIZE / 4096).map(|_| vec![1; 4096]).collect();
        let last = vec![1; 4096];
        assert!(resident() > before + SIZE / 2, "the pages are in use");
        drop(much);
        drop(GiveBack);
        assert!(resident() < before + SIZE / 4, "{} MB are kept", (resident() - before) >> 20);
        drop(last);
    }
}
