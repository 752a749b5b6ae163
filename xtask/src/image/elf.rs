//! Whether a program needs a loader: what `ldd` would say, without running anything.

use anyhow::{Context, Result, ensure};

/// The kind of segment that names a program's loader.
const INTERPRETER: u32 = 3;

/// The loader that a 64-bit program asks for; none for a static one.
pub(super) fn interpreter(elf: &[u8]) -> Result<Option<String>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian program");
    let offset = number(elf, 32, 8)?;
    let (size, count) = (number(elf, 54, 2)?, number(elf, 56, 2)?);
    for index in 0..count {
        let header = offset + index * size;
        if number(elf, header, 4)? == INTERPRETER as usize {
            let (start, length) = (number(elf, header + 8, 8)?, number(elf, header + 32, 8)?);
            let name = elf.get(start..start + length).context("it ends too early")?;
            return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

fn number(elf: &[u8], at: usize, length: usize) -> Result<usize> {
    let bytes = elf.get(at..at + length).context("it ends too early")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_a_loader_and_rubbish_is_refused() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(interpreter(&this).unwrap().unwrap().contains("ld-linux"));
        assert!(interpreter(b"#!/bin/sh").is_err());
        assert!(interpreter(&this[..60]).is_err());
    }
}
