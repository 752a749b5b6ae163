//! Inputs that are kept: files of this crate, named by their content.

use crate::{Target, coverage::Seen, drive};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where a target's inputs are.
pub fn folder(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name())
}

/// The target's own seeds, then the files in the order of their names.
pub fn load(target: Target) -> Result<Vec<Vec<u8>>> {
    let mut inputs = target.seeds();
    let folder = folder(target);
    let mut paths: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    paths.sort();
    for path in paths {
        inputs.push(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(inputs)
}

/// Removes the files that reach nothing beyond the seeds and shorter files. How many are left.
///
/// # Errors
/// A build that counts no coverage, or a file that cannot be read or removed.
pub fn thin_out(target: Target) -> Result<usize> {
    ensure!(Seen::is_guided(), "this build counts no coverage: nobody can tell what an input is for");
    let mut seen = Seen::default();
    let mut reaches = |input: &[u8]| {
        drive::passes(target, input);
        seen.take() > 0
    };
    for input in target.seeds() {
        reaches(&input);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder(target)).context("read the corpus")? {
        let path = entry?.path();
        files.push((fs::read(&path)?, path));
    }
    files.sort_by_key(|(input, path)| (input.len(), path.clone()));
    let mut left = 0;
    for (input, path) in files {
        if reaches(&input) {
            left += 1;
        } else {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(left)
}

/// Keeps an input; the file's path.
pub fn save(folder: &Path, input: &[u8]) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    // FNV-1a: equal inputs are one file.
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("{hash:016x}"));
    fs::write(&path, input).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
