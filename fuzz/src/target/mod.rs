//! What is fuzzed. Each target reads bytes as something from outside, and panics when what must hold does not.

mod decide;
mod event;
mod object;
mod packet;

/// A function of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The packet parser, on frames.
    Packet,
    /// The decision: frames and changes of policy, one after another, through the hooks in memory.
    Decide,
    /// The reader of objects, and what it read through compiler and evaluator.
    Object,
    /// The codec of events.
    Event,
}

impl Target {
    /// All.
    pub const ALL: [Self; 4] = [Self::Packet, Self::Decide, Self::Object, Self::Event];

    /// Its name, which is that of its folder in the corpus.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Decide => "decide",
            Self::Object => "object",
            Self::Event => "event",
        }
    }

    /// Runs it.
    ///
    /// # Panics
    /// When something is wrong with what the bytes lead to.
    pub fn run(self, input: &[u8]) {
        match self {
            Self::Packet => packet::run(input),
            Self::Decide => decide::run(input),
            Self::Object => object::run(input),
            Self::Event => event::run(input),
        }
    }

    /// Inputs to begin with.
    pub fn seeds(self) -> Vec<Vec<u8>> {
        match self {
            Self::Packet => packet::seeds(),
            Self::Decide => decide::seeds(),
            Self::Object => object::seeds(),
            Self::Event => event::seeds(),
        }
    }

    /// Pieces that make sense to it.
    pub const fn words(self) -> &'static [&'static [u8]] {
        match self {
            Self::Packet | Self::Decide => packet::WORDS,
            Self::Object => object::WORDS,
            Self::Event => &[],
        }
    }
}
