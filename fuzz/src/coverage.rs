//! Which code ran, from the counters that `-Cinstrument-coverage` puts into this program.
//!
//! Only a build with the feature `coverage` has them; without it every input looks alike, and fuzzing is blind.

/// How often each place ran, in classes: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, more. A bit for each class seen.
#[derive(Debug, Default)]
pub struct Seen {
    classes: Vec<u8>,
    features: usize,
}

impl Seen {
    /// Whether this build can tell.
    pub const fn is_guided() -> bool {
        cfg!(feature = "coverage")
    }

    /// Takes in what ran since [`reset`]: how much of it was new.
    pub fn take(&mut self) -> usize {
        let counters = counters();
        self.classes.resize(counters.len(), 0);
        let mut new = 0;
        for (seen, count) in self.classes.iter_mut().zip(counters) {
            let class = class(*count);
            if class & !*seen != 0 {
                *seen |= class;
                new += 1;
            }
        }
        self.features += new;
        new
    }

    /// Places and classes seen so far.
    pub const fn features(&self) -> usize {
        self.features
    }
}

const fn class(count: u64) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}

#[cfg(feature = "coverage")]
mod runtime {
    // SAFETY: functions of the profiling runtime that the compiler links into an instrumented program.
    unsafe extern "C" {
        pub(super) safe fn __llvm_profile_begin_counters() -> *const u64;
        pub(super) safe fn __llvm_profile_end_counters() -> *const u64;
        pub(super) safe fn __llvm_profile_reset_counters();
    }
}

/// Forgets what ran.
pub fn reset() {
    #[cfg(feature = "coverage")]
    runtime::__llvm_profile_reset_counters();
}

#[cfg(feature = "coverage")]
fn counters() -> &'static [u64] {
    let (begin, end) = (runtime::__llvm_profile_begin_counters(), runtime::__llvm_profile_end_counters());
    let length = (end as usize - begin as usize) / size_of::<u64>();
    // SAFETY: the runtime's counters are one array of words that lives as long as the program; they only count.
    unsafe { std::slice::from_raw_parts(begin, length) }
}

#[cfg(not(feature = "coverage"))]
const fn counters() -> &'static [u64] {
    &[]
}
