//! Where objects come from: manifests in a directory or an API server, each change as deltas of the world.

pub mod files;
pub mod kube;
pub mod objects;
pub mod service;
pub mod text;
mod watch;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use self::kube::KubeSource;
use self::objects::Update;
use self::service::FilesSource;

/// A running source. It tells [`Told`] to whoever started it.
#[derive(Debug)]
pub enum Source {
    /// Manifests in a directory.
    Files(FilesSource),
    /// An API server.
    Kubernetes(KubeSource),
}

/// News of a source.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Changes and problems. The first update of a source holds all that it has; none comes before it is synced.
    pub update: Update,
    /// Requests to read again that everything told until now, this included, answers.
    pub answered: u64,
    /// How the source is doing.
    pub state: SourceState,
}

/// How a source is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Everything that it has was told once.
    pub synced: bool,
    /// What is missing for that, or went missing since; one sentence an entry.
    pub missing: Vec<String>,
    /// Why it does not deliver; empty = it does.
    pub error: String,
}

impl Source {
    /// Asks for everything that there is now. Returns the number of the request; a later [`Told::answered`] reaches it.
    pub fn read_again(&mut self) -> u64 {
        match self {
            Self::Files(files) => files.read_again(),
            Self::Kubernetes(kube) => kube.read_again(),
        }
    }

    /// Why a request is not answered yet.
    #[must_use]
    pub fn unanswered(&self) -> &'static str {
        match self {
            Self::Files(_) => "the manifests are being read, or a file in them is being written",
            Self::Kubernetes(_) => "not everything that the API server holds has arrived",
        }
    }
}

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Path as given on the command line, joined with the way below it.
    pub file: Arc<str>,
    /// Line on which the object's document begins, from 1.
    pub line: u32,
    /// Position in the document's `items`, when the document is a list.
    pub item: Option<u32>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        match self.item {
            Some(item) => write!(f, " items[{item}]"),
            None => Ok(()),
        }
    }
}

/// One object, not yet interpreted.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Where it was read.
    pub origin: Origin,
    /// The object.
    pub value: Arc<Value>,
}

/// Kind, namespace and name of an object that is not yet interpreted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Kind.
    pub kind: String,
    /// Namespace, `default` when the object names none; empty for kinds of the whole cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectId {
    /// The id of an object, if it has a kind and a name.
    #[must_use]
    pub fn of(value: &Value) -> Option<Self> {
        let kind = value.get("kind")?.as_str()?;
        let metadata = value.get("metadata")?;
        let name = metadata.get("name")?.as_str()?;
        let namespace = match kind {
            "Namespace" | "Node" | "ClusterNetworkPolicy" => "",
            _ => metadata
                .get("namespace")
                .and_then(Value::as_str)
                .filter(|n| !n.is_empty())
                .unwrap_or("default"),
        };
        Some(Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Something wrong with a file or with a document in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileProblem {
    /// File or directory.
    pub file: Arc<str>,
    /// Line, from 1, where known.
    pub line: Option<u32>,
    /// Column, from 1, where known.
    pub column: Option<u32>,
    /// What is wrong and what happens instead.
    pub message: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that a directory holds at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Objects in order of their paths and positions; of one object the last only.
    pub documents: Vec<Document>,
    /// What could not be read, sorted.
    pub problems: Vec<FileProblem>,
}
