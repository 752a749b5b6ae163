//! An image as the archive that `docker save` writes; the same content gives the same bytes.

use std::fmt::Write;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// One file or folder of the image.
pub(crate) struct Content {
    path: String,
    mode: u32,
    kind: EntryType,
    bytes: Vec<u8>,
}

impl Content {
    /// A folder, by its path from the root.
    pub(crate) fn folder(path: &str, mode: u32) -> Self {
        Self { path: format!("{path}/"), mode, kind: EntryType::Directory, bytes: Vec::new() }
    }

    /// A program.
    pub(crate) fn file(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), mode: 0o755, kind: EntryType::Regular, bytes }
    }
}

/// An image of one layer.
pub(crate) struct Image<'a> {
    /// Name and tag.
    pub(crate) name: &'a str,
    /// What runs when nothing else is said.
    pub(crate) entrypoint: &'a str,
    /// What is in it.
    pub(crate) contents: Vec<Content>,
}

impl Image<'_> {
    /// The archive: layer, configuration, and the manifest that ties them to the name.
    pub(crate) fn archive(mut self) -> Result<Vec<u8>> {
        self.contents.sort_by(|a, b| a.path.cmp(&b.path));
        let layer = tar_of(&self.contents)?;
        let digest = digest(&layer);
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"created\":\"1970-01-01T00:00:00Z\",\
             \"config\":{{\"Entrypoint\":[\"{}\"],\"Env\":[\"PATH=/bin\"],\"WorkingDir\":\"/\"}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}},\
             \"history\":[{{\"created\":\"1970-01-01T00:00:00Z\",\"created_by\":\"cargo xtask image\"}}]}}",
            self.entrypoint
        );
        let config_name = format!("{}.json", self::digest(config.as_bytes()));
        let manifest = format!(
            "[{{\"Config\":\"{config_name}\",\"RepoTags\":[\"{}\"],\"Layers\":[\"{digest}/layer.tar\"]}}]",
            self.name
        );
        let plain =
            |path: String, bytes: Vec<u8>| Content { path, mode: 0o644, kind: EntryType::Regular, bytes };
        tar_of(&[
            Content::folder(&digest, 0o755),
            plain(format!("{digest}/layer.tar"), layer),
            plain(config_name, config.into_bytes()),
            plain("manifest.json".to_owned(), manifest.into_bytes()),
        ])
    }
}

/// Everything belongs to root and has no time.
fn tar_of(contents: &[Content]) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for content in contents {
        let mut header = Header::new_gnu();
        header.set_entry_type(content.kind);
        header.set_mode(content.mode);
        header.set_size(content.bytes.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder
            .append_data(&mut header, &content.path, content.bytes.as_slice())
            .with_context(|| format!("cannot put {} into an archive", content.path))?;
    }
    builder.into_inner().context("cannot end an archive")
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    fn image() -> Image<'static> {
        let contents = vec![
            Content::folder("tmp", 0o1777),
            Content::file("bin/agent", b"program".to_vec()),
            Content::folder("bin", 0o755),
        ];
        Image { name: "example.test/agent:dev", entrypoint: "/bin/agent", contents }
    }

    fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let (mode, mut bytes) = (entry.header().mode().unwrap(), Vec::new());
            assert_eq!((entry.header().uid().unwrap(), entry.header().mtime().unwrap()), (0, 0));
            entry.read_to_end(&mut bytes).unwrap();
            (path, (mode, bytes))
        };
        archive.entries().unwrap().map(read).collect()
    }

    /// The text after `"key":["` up to the next quote.
    fn first(json: &[u8], key: &str) -> String {
        let text = String::from_utf8(json.to_vec()).unwrap();
        let start = text.split(&format!("\"{key}\":")).nth(1).unwrap();
        start.split('"').nth(1).unwrap().to_owned()
    }

    #[test]
    fn digests_name_what_they_are_of() {
        let outer = entries(&image().archive().unwrap());
        let manifest = &outer["manifest.json"].1;
        assert_eq!(first(manifest, "RepoTags"), "example.test/agent:dev");
        let (config_name, layer_name) = (first(manifest, "Config"), first(manifest, "Layers"));
        let (config, layer) = (&outer[&config_name].1, &outer[&layer_name].1);
        assert_eq!(config_name, format!("{}.json", digest(config)));
        assert_eq!(layer_name, format!("{}/layer.tar", digest(layer)));
        assert_eq!(first(config, "diff_ids"), format!("sha256:{}", digest(layer)));
        assert_eq!(first(config, "Entrypoint"), "/bin/agent");
        let inner = entries(layer);
        let modes: Vec<_> = inner.iter().map(|(path, (mode, _))| (path.as_str(), *mode)).collect();
        assert_eq!(modes, [("bin/", 0o755), ("bin/agent", 0o755), ("tmp/", 0o1777)]);
        assert_eq!(inner["bin/agent"].1, b"program");
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let mut other = image();
        other.contents.reverse();
        assert_eq!(image().archive().unwrap(), other.archive().unwrap());
    }
}
