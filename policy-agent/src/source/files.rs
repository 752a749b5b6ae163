//! Manifests in a directory, with what stays in force when a file can no longer be read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::text::{Parsed, Syntax, parse};
use super::{Document, FileProblem, ObjectId, Origin, Snapshot};

/// Largest manifest that is read, in bytes.
const MAX_SIZE: u64 = 64 << 20;

/// A file whose last change is nearer to the time of reading than this may change again without a new time stamp.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// Reads all manifests of a directory and the directories below it, or of one file.
///
/// # Errors
/// When `path` itself cannot be read. Everything below it that cannot be read is a problem of the snapshot.
pub fn read_dir(path: &Path) -> io::Result<Snapshot> {
    if fs::metadata(path)?.is_dir() {
        fs::read_dir(path)?;
    } else {
        fs::File::open(path)?;
    }
    Ok(Files::new(path).scan(&HashSet::new()).snapshot)
}

/// A directory that is read again and again. What stops being readable keeps its last good objects.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    known: BTreeMap<PathBuf, Known>,
}

/// The result of one reading.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// What the directory holds.
    pub snapshot: Snapshot,
    /// Directories in which a change may change the snapshot: those that were read and those that links lead to.
    pub directories: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Known {
    stamp: Option<Stamp>,
    documents: Vec<Document>,
    problems: Vec<FileProblem>,
    /// `documents` are those of a version that had no problem.
    good: bool,
}

/// What tells an unchanged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` when the file changed so shortly before `now` that a later change could carry the same stamp.
    fn of(meta: &Metadata, now: SystemTime) -> Option<Self> {
        let changed =
            Duration::new(u64::try_from(meta.ctime()).ok()?, u32::try_from(meta.ctime_nsec()).ok()?);
        let age = now.duration_since(UNIX_EPOCH + changed).ok()?;
        (age > CLOCK_STEP).then(|| Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What a walk finds.
#[derive(Default)]
struct Walk {
    files: BTreeMap<PathBuf, Syntax>,
    directories: BTreeSet<PathBuf>,
    problems: Vec<FileProblem>,
    /// Paths that could not be looked into: what was known below them stays.
    unreadable: Vec<PathBuf>,
    /// (device, inode) of the directories on the way down: links may form a circle.
    above: Vec<(u64, u64)>,
}

impl Files {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), known: BTreeMap::new() }
    }

    /// Reads what changed since the last time. `unsettled`: files that somebody is writing; they stay as known.
    pub fn scan(&mut self, unsettled: &HashSet<PathBuf>) -> Scan {
        let mut walk = Walk::default();
        walk.enter_root(&self.root);
        let Walk { files, directories, mut problems, unreadable, .. } = walk;
        self.known
            .retain(|path, _| files.contains_key(path) || unreadable.iter().any(|u| path.starts_with(u)));
        for (path, syntax) in files {
            if !is_unsettled(&path, unsettled) {
                self.read(path, syntax);
            }
        }
        problems.extend(self.known.values().flat_map(|k| k.problems.iter().cloned()));
        let documents = self.known.values().flat_map(|k| k.documents.iter().cloned()).collect();
        let documents = without_duplicates(documents, &mut problems);
        problems.sort();
        Scan { snapshot: Snapshot { documents, problems }, directories }
    }

    fn read(&mut self, path: PathBuf, syntax: Syntax) {
        let file: Arc<str> = path.to_string_lossy().into();
        let now = SystemTime::now();
        let stamp = fs::metadata(&path).ok().and_then(|m| Stamp::of(&m, now));
        let known = self.known.get(&path);
        if stamp.is_some() && known.is_some_and(|k| k.stamp == stamp) {
            return;
        }
        let parsed = match read_text(&path) {
            Ok(text) => parse(&file, &text, syntax),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.known.remove(&path);
                return;
            }
            Err(e) => Parsed {
                documents: Vec::new(),
                problems: vec![problem(&path, &format!("cannot be read: {e}"))],
            },
        };
        let next = merge(known, parsed, &path, stamp);
        self.known.insert(path, next);
    }
}

/// What a file holds from now on: the new version if it is good, else as much of the last good one as there is.
fn merge(known: Option<&Known>, parsed: Parsed, path: &Path, stamp: Option<Stamp>) -> Known {
    let Parsed { mut documents, mut problems } = parsed;
    let Some(known) = known.filter(|k| !k.documents.is_empty()) else {
        return Known { stamp, good: problems.is_empty(), documents, problems };
    };
    if documents.is_empty() && problems.is_empty() {
        problems.push(problem(path, "holds no object any more"));
    }
    if problems.is_empty() {
        return Known { stamp, documents, problems, good: true };
    }
    for problem in &mut problems {
        problem.message.push_str(
            "; the file's last good version stays in force (delete the file to remove its objects)",
        );
    }
    if known.good {
        return Known { stamp, documents: known.documents.clone(), problems, good: true };
    }
    // No version was good as a whole: the newest good version of each object.
    let have: HashSet<_> = documents.iter().filter_map(|d| ObjectId::of(&d.value)).collect();
    let lost = |d: &&Document| ObjectId::of(&d.value).is_some_and(|id| !have.contains(&id));
    documents.extend(known.documents.iter().filter(lost).cloned());
    Known { stamp, documents, problems, good: false }
}

/// Events name the file itself, never a link to it.
fn is_unsettled(path: &Path, unsettled: &HashSet<PathBuf>) -> bool {
    !unsettled.is_empty()
        && (unsettled.contains(path) || fs::canonicalize(path).is_ok_and(|p| unsettled.contains(&p)))
}

fn read_text(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_SIZE {
        let message = format!("{size} bytes are more than a manifest may have ({MAX_SIZE})");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    String::from_utf8(fs::read(path)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8 text (line {line})"))
    })
}

fn problem(path: &Path, message: &str) -> FileProblem {
    FileProblem { file: path.to_string_lossy().into(), line: None, column: None, message: message.to_owned() }
}

/// Of an object that several documents define the last one holds.
fn without_duplicates(documents: Vec<Document>, problems: &mut Vec<FileProblem>) -> Vec<Document> {
    let mut winners: HashMap<ObjectId, usize> = HashMap::new();
    let mut losers: BTreeMap<usize, ObjectId> = BTreeMap::new();
    for (i, document) in documents.iter().enumerate() {
        let Some(id) = ObjectId::of(&document.value) else { continue };
        if let Some(before) = winners.insert(id.clone(), i) {
            losers.insert(before, id);
        }
    }
    for (i, id) in &losers {
        let Origin { file, line, .. } = &documents[*i].origin;
        let winner = winners.get(id).map(|w| documents[*w].origin.to_string()).unwrap_or_default();
        let message = format!("{id} is defined again at {winner}, which is the one in force");
        problems.push(FileProblem { file: file.clone(), line: Some(*line), column: None, message });
    }
    let kept = documents.into_iter().enumerate().filter(|(i, _)| !losers.contains_key(i));
    kept.map(|(_, document)| document).collect()
}

impl Walk {
    fn enter_root(&mut self, root: &Path) {
        self.directories.extend(
            root.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p }.to_owned()),
        );
        if let Some(above) = root.parent() {
            self.directories.insert(if above.as_os_str().is_empty() { ".".into() } else { above.to_owned() });
        }
        self.watch_target(root);
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => self.enter(root, &meta),
            Ok(_) => {
                let syntax = root.file_name().and_then(|n| Syntax::of(&n.to_string_lossy()));
                self.files.insert(root.to_owned(), syntax.unwrap_or(Syntax::Yaml));
            }
            Err(e) => self.cannot(root, &e),
        }
    }

    fn cannot(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be read: {error}; what was known of it stays in force");
        self.problems.push(problem(path, &message));
        self.unreadable.push(path.to_owned());
    }

    fn enter(&mut self, directory: &Path, meta: &Metadata) {
        let identity = (meta.dev(), meta.ino());
        if self.above.contains(&identity) {
            self.problems.push(problem(directory, "leads back to a directory above it: not followed"));
            return;
        }
        self.above.push(identity);
        self.directories.insert(directory.to_owned());
        match fs::read_dir(directory) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => self.look_at(&entry),
                        Err(e) => self.cannot(directory, &e),
                    }
                }
            }
            Err(e) => self.cannot(directory, &e),
        }
        self.above.pop();
    }

    fn look_at(&mut self, entry: &fs::DirEntry) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') {
            return;
        }
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_symlink()) {
            self.watch_target(&path);
        }
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound && entry.metadata().is_err() => return,
            Err(e) if Syntax::of(&name).is_some() => return self.cannot(&path, &e),
            Err(_) => return,
        };
        if meta.is_dir() {
            self.enter(&path, &meta);
        } else if meta.is_file()
            && let Some(syntax) = Syntax::of(&name)
        {
            self.files.insert(path, syntax);
        }
    }

    /// A change of what a link leads to shows in the target's directory only.
    fn watch_target(&mut self, link: &Path) {
        if let Ok(target) = fs::canonicalize(link)
            && let Some(directory) = target.parent()
        {
            self.directories.insert(directory.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn pod(name: &str) -> String {
        format!("kind: Pod\nmetadata: {{name: {name}}}\n---\n")
    }

    fn names(snapshot: &Snapshot) -> Vec<&str> {
        snapshot.documents.iter().map(|d| d.value["metadata"]["name"].as_str().unwrap()).collect()
    }

    fn scan(files: &mut Files) -> Snapshot {
        files.scan(&HashSet::new()).snapshot
    }

    #[test]
    fn folders_links_and_temporaries_as_mounted_config_maps_have_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("..2024")).unwrap();
        fs::write(root.join("..2024/a.yaml"), pod("a")).unwrap();
        symlink("..2024", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/b.yml"), pod("b")).unwrap();
        symlink("..", root.join("sub/up")).unwrap();
        for skipped in [".hidden.yaml", "a.yaml~", "#a.yaml#", "notes.txt"] {
            fs::write(root.join(skipped), pod("never")).unwrap();
        }
        let snapshot = read_dir(root).unwrap();
        assert_eq!(names(&snapshot), ["a", "b"]);
        assert_eq!(snapshot.problems.len(), 1, "the circle: {:?}", snapshot.problems);
        assert!(read_dir(&root.join("none")).is_err());
        assert_eq!(names(&read_dir(&root.join("sub/b.yml")).unwrap()), ["b"]);
    }

    #[test]
    fn the_last_duplicate_wins_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), format!("{}{}", pod("x"), pod("y"))).unwrap();
        fs::write(
            dir.path().join("b.yaml"),
            "kind: Pod\nmetadata: {name: x, namespace: default, labels: {v: b}}\n",
        )
        .unwrap();
        let snapshot = read_dir(dir.path()).unwrap();
        assert_eq!(names(&snapshot), ["y", "x"]);
        assert_eq!(snapshot.documents[1].value["metadata"]["labels"]["v"], "b");
        let told = snapshot.problems[0].to_string();
        assert!(
            told.contains("a.yaml:1:") && told.contains("b.yaml:1") && told.contains("Pod default/x"),
            "{told}"
        );
    }

    #[test]
    fn a_file_that_breaks_or_empties_keeps_its_last_good_objects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut files = Files::new(dir.path());
        fs::write(&path, format!("{}{}", pod("x"), pod("y"))).unwrap();
        assert_eq!(names(&scan(&mut files)), ["x", "y"]);
        for broken in ["", "# nothing\n", "kind: Pod\nmetadata: {name: z}\n---\nkind: [\n", "\0\u{1}"] {
            fs::write(&path, broken).unwrap();
            let snapshot = scan(&mut files);
            assert_eq!((names(&snapshot), snapshot.problems.len()), (vec!["x", "y"], 1), "{broken:?}");
        }
        fs::write(&path, pod("z")).unwrap();
        assert_eq!((names(&scan(&mut files)), scan(&mut files).problems), (vec!["z"], vec![]));
        fs::remove_file(&path).unwrap();
        assert_eq!(scan(&mut files), Snapshot::default());
    }

    #[test]
    fn a_file_that_was_never_good_gives_the_newest_of_each_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut files = Files::new(dir.path());
        fs::write(&path, format!("{}{}kind: [\n", pod("x"), pod("y"))).unwrap();
        assert_eq!(names(&scan(&mut files)), ["x", "y"]);
        fs::write(&path, format!("kind: [\n---\n{}", pod("x"))).unwrap();
        assert_eq!(names(&scan(&mut files)), ["x", "y"]);
    }

    #[test]
    fn a_directory_that_vanishes_keeps_its_objects_and_one_that_is_replaced_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("root"), dir.path().join("other"));
        for (d, name) in [(&root, "x"), (&other, "y")] {
            fs::create_dir(d).unwrap();
            fs::write(d.join("a.yaml"), pod(name)).unwrap();
        }
        let mut files = Files::new(&root);
        assert_eq!(names(&scan(&mut files)), ["x"]);
        fs::remove_dir_all(&root).unwrap();
        let snapshot = scan(&mut files);
        assert_eq!((names(&snapshot), snapshot.problems.len()), (vec!["x"], 1));
        fs::rename(&other, &root).unwrap();
        assert_eq!(names(&scan(&mut files)), ["y"]);
    }

    #[test]
    fn files_being_written_stay_as_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut files = Files::new(dir.path());
        fs::write(&path, pod("x")).unwrap();
        scan(&mut files);
        fs::write(&path, pod("half")).unwrap();
        let unsettled = HashSet::from([path]);
        assert_eq!(names(&files.scan(&unsettled).snapshot), ["x"]);
        assert_eq!(names(&scan(&mut files)), ["half"]);
    }
}
