//! The archive that a VM's kernel unpacks as its file system: programs, libraries, kernel modules.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    kernel::Unpacked,
    suites::{FILES, Programs},
};
use crate::command;

/// Modules for what the suites make; what a kernel has built in, or lacks, is left out.
const MODULES: &[&str] =
    &["veth", "dummy", "bridge", "8021q", "sch_ingress", "cls_bpf", "nf_conntrack", "nf_tables", "nft_ct"];
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// The archive for one kernel.
pub(super) fn build(kernel: &Unpacked, programs: &Programs, test_args: &[String]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.program("init", &programs.init)?;
    for (index, (name, binary)) in programs.suites.iter().enumerate() {
        archive.program(&format!("suites/{index:02}-{name}"), binary)?;
    }
    archive.entry("arguments", FILE, test_args.join("\n").as_bytes());
    for folder in FILES {
        archive.folder(&command::root(), folder)?;
    }
    let mut files = Vec::new();
    list(&kernel.dir, &mut files)?;
    let mut done = BTreeSet::new();
    for name in MODULES {
        module(name, &files, &mut archive, &mut done)?;
    }
    archive.entry("TRAILER!!!", 0, &[]);
    Ok(archive.bytes)
}

/// The kernel image: in boot/, or beside the modules in newer packages.
pub(super) fn image(kernel: &Unpacked) -> Result<PathBuf> {
    let mut files = Vec::new();
    list(&kernel.dir, &mut files)?;
    let image = files.into_iter().find(|path| name(path).starts_with("vmlinuz"));
    image.with_context(|| format!("{} has no vmlinuz", kernel.package))
}

/// A "newc" cpio archive.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        if !self.names.insert(name.to_owned()) {
            return;
        }
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.entry(folder, FOLDER, &[]);
        }
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        // inode, mode, owner, group, links, time, size, four device numbers, length of the name, check sum
        let header = [
            number(self.names.len()),
            mode,
            0,
            0,
            1,
            0,
            number(data.len()),
            0,
            0,
            0,
            0,
            number(name.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for value in header {
            self.bytes.extend(format!("{value:08x}").bytes());
        }
        for part in [[name.as_bytes(), b"\0"].concat().as_slice(), data] {
            self.bytes.extend(part);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
    }

    /// All files of a folder of this checkout, below the machine's own `repository`.
    fn folder(&mut self, root: &Path, folder: &str) -> Result<()> {
        let mut files = Vec::new();
        list(&root.join(folder), &mut files)?;
        for path in files {
            let at = path.strip_prefix(root).ok().and_then(Path::to_str);
            let at = at.with_context(|| format!("{} has no name below the root", path.display()))?;
            self.entry(&format!("repository/{at}"), FILE, &read(&path)?);
        }
        Ok(())
    }

    /// A program and the libraries that the dynamic loader would open for it.
    fn program(&mut self, at: &str, path: &Path) -> Result<()> {
        self.entry(at, PROGRAM, &read(path)?);
        // It fails for a static program, which has none.
        let ldd = Command::new("ldd").arg(path).output().context("cannot run ldd")?;
        for library in
            String::from_utf8_lossy(&ldd.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            self.entry(library.trim_start_matches('/'), PROGRAM, &read(Path::new(library))?);
        }
        Ok(())
    }
}

/// A module after those it depends on, numbered so that the first process loads them in order.
fn module(wanted: &str, files: &[PathBuf], archive: &mut Archive, done: &mut BTreeSet<String>) -> Result<()> {
    let wanted = wanted.replace('-', "_");
    let stem = |path: &Path| name(path).split_once(".ko").map(|(stem, _)| stem.replace('-', "_"));
    let Some(path) = files.iter().find(|path| stem(path).as_deref() == Some(&wanted)) else { return Ok(()) };
    if !done.insert(wanted.clone()) {
        return Ok(());
    }
    let bytes = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => read(path)?,
        Some("xz") => {
            let output = command::new("xz").arg("-dc").arg(path).output().context("cannot run xz")?;
            anyhow::ensure!(output.status.success(), "xz cannot unpack {}", path.display());
            output.stdout
        }
        Some(_) | None => bail!("{} is packed in a way that is not known", path.display()),
    };
    for dependency in dependencies(&bytes) {
        module(&dependency, files, archive, done)?;
    }
    // Entries are counted, not modules: those that this one needs were entered a moment ago.
    archive.entry(&format!("modules/{:04}-{wanted}.ko", archive.names.len()), FILE, &bytes);
    Ok(())
}

/// The list in a module's ".modinfo" section: no package ships a ready list of all modules.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() && !path.is_symlink() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_folders_come_too() {
        let mut archive = Archive::default();
        archive.entry("a/b", FILE, b"12345");
        assert_eq!(archive.bytes.len() % 4, 0);
        assert_eq!(archive.names.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "a/b"]);
        let text = String::from_utf8_lossy(&archive.bytes).into_owned();
        assert_eq!(text.matches("070701").count(), 2);
        let before = archive.bytes.len();
        archive.entry("a/b", FILE, b"again");
        assert_eq!(archive.bytes.len(), before);
    }

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(
            dependencies(b"x\0license=GPL\0depends=nf_defrag_ipv4,libcrc32c\0y"),
            ["nf_defrag_ipv4", "libcrc32c"]
        );
        assert_eq!(dependencies(b"x\0depends=\0"), [""; 0]);
        assert_eq!(dependencies(b"nothing"), [""; 0]);
    }
}
