//! Changes of inputs: bits, bytes, chunks, words that the target knows, parts of other inputs.

use policy_engine::testing::rng::Rng;

const BYTES: [u8; 18] = [0, 1, 2, 4, 5, 6, 8, 15, 17, 43, 44, 58, 60, 64, 127, 128, 254, 255];
/// Longest input.
const LIMIT: usize = 4096;

/// A changed copy of `input`; `other` is another input, `words` are pieces that make sense to the target.
pub fn mutate(rng: &mut Rng, input: &[u8], other: &[u8], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.one([1, 1, 1, 2, 3, 5, 8]) {
        once(rng, &mut bytes, other, words);
    }
    bytes.truncate(LIMIT);
    bytes
}

fn once(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    if bytes.is_empty() {
        bytes.push(rng.one(BYTES));
        return;
    }
    let at = rng.below(bytes.len());
    let span = |rng: &mut Rng, length: usize| {
        let start = rng.below(length);
        start..(start + 1 + rng.below(32)).min(length)
    };
    match rng.below(12) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 | 3 => bytes[at] = rng.one(BYTES),
        4 => bytes[at] = bytes[at].wrapping_add(rng.one([1, 255, 16, 240])),
        5 => bytes.truncate(at),
        6 => drop(bytes.drain(span(rng, bytes.len()))),
        7 => {
            let chunk = bytes[span(rng, bytes.len())].to_vec();
            bytes.splice(at..at, chunk);
        }
        8 if !other.is_empty() => {
            let chunk = other[span(rng, other.len())].to_vec();
            bytes.splice(at..at, chunk);
        }
        9 if !other.is_empty() => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[rng.below(other.len())..]);
        }
        10 if !words.is_empty() => {
            let word = words[rng.below(words.len())].to_vec();
            bytes.splice(at..at, word);
        }
        11 if !words.is_empty() => {
            let word = words[rng.below(words.len())];
            let end = (at + word.len()).min(bytes.len());
            bytes.splice(at..end, word.iter().copied());
        }
        _ => bytes.insert(at, rng.one(BYTES)),
    }
}
