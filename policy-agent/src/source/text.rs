//! The text of a manifest as objects: YAML with many documents, JSON, and `List` objects taken apart.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Document, FileProblem, Origin};

/// Syntax of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `.yaml`, `.yml`.
    Yaml,
    /// `.json`.
    Json,
}

impl Syntax {
    /// Syntax by the file's name; `None` for files that are not manifests: hidden ones and editors' temporaries too.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let (stem, extension) = name.rsplit_once('.')?;
        if stem.is_empty() || name.starts_with('.') {
            return None;
        }
        match extension.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What a file's text holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Objects in the order of the text.
    pub documents: Vec<Document>,
    /// Documents that could not be read.
    pub problems: Vec<FileProblem>,
}

/// Reads all documents of `text`. A document that does not parse is a problem; the others are still read.
#[must_use]
pub fn parse(file: &Arc<str>, text: &str, syntax: Syntax) -> Parsed {
    let mut parsed = Parsed::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match syntax {
        Syntax::Yaml => {
            for chunk in split_yaml(text) {
                match parse_yaml(chunk.text) {
                    Ok(value) => parsed.take(file, chunk.content, value),
                    Err(error) => {
                        let place = error.location();
                        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                        let at = place
                            .as_ref()
                            .map_or(chunk.content, |l| chunk.begin + number(l.line()).saturating_sub(1));
                        let column = place.map(|l| number(l.column()));
                        parsed.problem(file, at, column, &without_place(&error.to_string()));
                    }
                }
            }
        }
        Syntax::Json => parse_json(file, text, &mut parsed),
    }
    parsed
}

fn parse_yaml(chunk: &str) -> Result<Value, serde_norway::Error> {
    let mut value: serde_norway::Value = serde_norway::from_str(chunk)?;
    value.apply_merge()?;
    serde_json::to_value(&value).map_err(de::Error::custom)
}

fn parse_json(file: &Arc<str>, text: &str, parsed: &mut Parsed) {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    loop {
        let rest = &text[stream.byte_offset()..];
        let start = text.len() - rest.trim_start().len();
        let line = 1 + u32::try_from(text[..start].matches('\n').count()).unwrap_or(u32::MAX - 1);
        match stream.next() {
            None => return,
            Some(Ok(Strict(value))) => parsed.take(file, line, value),
            Some(Err(error)) => {
                let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let (at, column) = (number(error.line()), number(error.column()));
                parsed.problem(file, at, Some(column), &without_place(&error.to_string()));
                return;
            }
        }
    }
}

/// The parsers put positions into their messages, counted from the document; ours stands before the message.
fn without_place(message: &str) -> String {
    let mut parts = message.split(" at line ");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = rest
            .strip_prefix(" column ")
            .map_or(rest, |r| r.trim_start_matches(|c: char| c.is_ascii_digit()));
        clean.push_str(rest);
    }
    clean
}

/// One document of a YAML stream.
struct Chunk<'a> {
    text: &'a str,
    /// Line of the stream on which `text` begins.
    begin: u32,
    /// Line of its first content: not of a marker, directive or comment before it.
    content: u32,
}

/// Documents of a YAML stream. In YAML `---` in the first column always starts a document, also inside a block
/// scalar, so lines suffice.
fn split_yaml(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut begin, mut begin_line, mut offset) = (0, 1, 0);
    let mut push = |begin: usize, end: usize, line: u32| {
        let text = &text[begin..end];
        if let Some(n) = text.lines().position(|l| !without_content(l)) {
            chunks.push(Chunk { text, begin: line, content: line + u32::try_from(n).unwrap_or(0) });
        }
    };
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let marker = is_marker(line, "---") && !only_directives(&text[begin..offset]);
        if marker || is_marker(line, "...") {
            push(begin, offset, begin_line);
            let skip = if marker { 0 } else { line.len() };
            (begin, begin_line) = (offset + skip, number + u32::from(!marker));
        }
        offset += line.len();
    }
    push(begin, text.len(), begin_line);
    chunks
}

/// Directives before a marker belong to the document that follows it.
fn only_directives(text: &str) -> bool {
    text.lines().all(|l| without_content(l) && !is_marker(l, "---"))
        && text.lines().any(|l| l.starts_with('%'))
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty())
}

fn without_content(line: &str) -> bool {
    let rest = line.strip_prefix("---").filter(|_| is_marker(line, "---")).unwrap_or(line).trim_start();
    rest.is_empty() || rest.starts_with('#') || line.starts_with('%')
}

impl Parsed {
    fn problem(&mut self, file: &Arc<str>, line: u32, column: Option<u32>, message: &str) {
        let message = message.to_owned();
        self.problems.push(FileProblem { file: file.clone(), line: Some(line), column, message });
    }

    fn take(&mut self, file: &Arc<str>, line: u32, value: Value) {
        let origin = Origin { file: file.clone(), line, item: None };
        if value.is_null() {
            return;
        }
        if !value.is_object() {
            self.problem(
                file,
                line,
                None,
                "not an object: a manifest is a mapping with apiVersion, kind and metadata",
            );
            return;
        }
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        let is_list = kind.ends_with("List") && value.get("items").is_some();
        if !is_list {
            self.documents.push(Document { origin, value: Arc::new(value) });
            return;
        }
        let item_kind = kind.strip_suffix("List").unwrap_or_default().to_owned();
        let api_version = value.get("apiVersion").cloned();
        match value.get("items") {
            Some(Value::Array(items)) => {
                for (i, item) in (0..).zip(items) {
                    self.take_item(&origin, i, item, &item_kind, api_version.as_ref());
                }
            }
            Some(Value::Null) | None => {}
            Some(_) => self.problem(file, line, None, "items: not a list: the objects in it are not read"),
        }
    }

    /// Items of a typed list (`PodList`) come without kind and version from the API.
    fn take_item(&mut self, list: &Origin, index: u32, item: &Value, kind: &str, version: Option<&Value>) {
        let origin = Origin { item: Some(index), ..list.clone() };
        let Some(fields) = item.as_object() else {
            let message = format!("items[{index}]: not an object");
            self.problem(&list.file, list.line, None, &message);
            return;
        };
        let mut fields = fields.clone();
        if !kind.is_empty() && !fields.contains_key("kind") {
            fields.insert("kind".to_owned(), kind.into());
            if let Some(version) = version {
                fields.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        self.documents.push(Document { origin, value: Arc::new(Value::Object(fields)) });
    }
}

/// A JSON value in which no mapping has a key twice: the last one would win without a word.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if fields.contains_key(&key) {
                return Err(de::Error::custom(format_args!("key {key:?} stands twice")));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Parsed {
        parse(&"f.yaml".into(), text, Syntax::Yaml)
    }

    fn json(text: &str) -> Parsed {
        parse(&"f.json".into(), text, Syntax::Json)
    }

    fn names(parsed: &Parsed) -> Vec<(String, u32)> {
        let name = |d: &Document| d.value["metadata"]["name"].as_str().unwrap_or("?").to_owned();
        parsed.documents.iter().map(|d| (name(d), d.origin.line)).collect()
    }

    #[test]
    fn many_documents_with_their_lines() {
        let text = "# a comment\n---\nkind: Pod\nmetadata: {name: a}\n---\n\n# only this\n--- # next\nkind: Pod\n\
                    metadata:\n  name: b\n--- {kind: Pod, metadata: {name: c}}\n";
        let p = yaml(text);
        assert_eq!(p.problems, []);
        assert_eq!(names(&p), [("a".to_owned(), 3), ("b".to_owned(), 9), ("c".to_owned(), 12)]);
        let p = yaml("%YAML 1.1\n---\nkind: Pod\nmetadata: {name: a}\n...\nkind: Pod\nmetadata: {name: b}\n");
        assert_eq!((names(&p), p.problems.len()), (vec![("a".to_owned(), 3), ("b".to_owned(), 6)], 0));
        assert_eq!(yaml("---\n# nothing\n---\n"), Parsed::default());
    }

    #[test]
    fn a_bad_document_names_its_line_and_spares_the_others() {
        let p = yaml(
            "kind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nmetadata:\n  name: [b\n---\nkind: Pod\nmetadata: {name: c}\n",
        );
        assert_eq!(names(&p), [("a".to_owned(), 1), ("c".to_owned(), 8)]);
        assert_eq!(p.problems.len(), 1);
        assert!((4..=7).contains(&p.problems[0].line.unwrap()), "{}", p.problems[0]);
        assert!(!p.problems[0].message.contains("at line"), "{}", p.problems[0]);
    }

    #[test]
    fn keys_that_stand_twice_and_text_that_is_no_object_are_problems() {
        assert_eq!(yaml("kind: Pod\nkind: Node\n").problems.len(), 1);
        let p = json("{\"kind\": \"Pod\",\n \"kind\": \"Node\"}");
        assert_eq!((p.documents.len(), p.problems[0].line), (0, Some(2)));
        assert_eq!(yaml("- a\n- b\n").problems.len(), 1);
        assert_eq!(yaml("just text\n").problems.len(), 1);
    }

    #[test]
    fn lists_are_taken_apart_and_their_items_completed() {
        let p = yaml("apiVersion: v1\nkind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n- 7\n");
        assert_eq!((names(&p), p.problems.len()), (vec![("a".to_owned(), 1)], 1));
        let p =
            json("{\"apiVersion\":\"v1\",\"kind\":\"PodList\",\"items\":[{\"metadata\":{\"name\":\"a\"}}]}");
        assert_eq!(p.documents[0].value["kind"], "Pod");
        assert_eq!(p.documents[0].value["apiVersion"], "v1");
        assert_eq!(p.documents[0].origin.to_string(), "f.json:1 items[0]");
    }

    #[test]
    fn json_streams_merge_keys_and_a_byte_order_mark() {
        let p = json(
            "{\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"}}\n\n{\"kind\":\"Pod\",\"metadata\":{\"name\":\"b\"}}\n",
        );
        assert_eq!(names(&p), [("a".to_owned(), 1), ("b".to_owned(), 3)]);
        let p = yaml("\u{feff}kind: Pod\nmetadata:\n  <<: {namespace: x}\n  name: a\n  labels: {1: \"2\"}\n");
        assert_eq!(p.problems, []);
        assert_eq!(p.documents[0].value["metadata"]["namespace"], "x");
        assert_eq!(p.documents[0].value["metadata"]["labels"]["1"], "2");
    }

    /// Something in the text is gone, stands twice, or is another thing.
    fn broken(text: &str, dice: &mut impl FnMut(usize) -> usize) -> String {
        const WORDS: [&str; 14] =
            ["{", "}", "[", "]", ":", "- ", "\n", "\n  ", "&a ", "*a", "<<: *a", "|\n", "\"", "\0\u{7f}é"];
        let mut text = text.to_owned();
        for _ in 0..=dice(4) {
            let mut ends = [0; 2].map(|_| text.floor_char_boundary(dice(text.len() + 1)));
            ends.sort_unstable();
            let [from, to] = ends;
            match dice(3) {
                0 => text.replace_range(from..to.min(text.ceil_char_boundary(from + 8)), ""),
                1 => {
                    let again = text[from..to].to_owned();
                    text.insert_str(from, &again);
                }
                _ => text.insert_str(from, WORDS[dice(WORDS.len())]),
            }
        }
        text
    }

    #[test]
    fn broken_texts_are_told_and_spare_what_comes_after_them() {
        const WHOLE: [&str; 3] = [
            "kind: Pod\nmetadata: &a\n  name: a\n  labels: {app: \"b\"}\nspec:\n  note: |\n    x\n    y\n",
            "kind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n- kind: Pod\n  metadata:\n    name: b\n",
            "# first\n---\nkind: Pod\nmetadata: {name: a}\n---\nkind: Namespace\nmetadata: {name: x}\n...\n",
        ];
        const NEXT: &str = "kind: Pod\nmetadata: {name: the-next}\n";
        let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut dice = |bound: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % bound as u64) as usize
        };
        let mut told = 0;
        for round in 0..20_000 {
            let text = broken(WHOLE[round % WHOLE.len()], &mut dice);
            let parsed = yaml(&format!("{text}\n---\n{NEXT}"));
            assert!(names(&parsed).iter().any(|(name, _)| name == "the-next"), "{text:?}");
            let lines = u32::try_from(text.lines().count()).unwrap() + 4;
            for problem in &parsed.problems {
                assert!(
                    problem.line.is_some_and(|line| (1..=lines).contains(&line)),
                    "{problem} of {text:?}"
                );
                assert!(!problem.message.is_empty(), "{text:?}");
            }
            told += usize::from(!parsed.problems.is_empty());
            drop(json(&text));
        }
        assert!((5_000..19_000).contains(&told), "{told} of 20000 had something wrong");
    }

    #[test]
    fn manifests_by_name() {
        for name in ["a.yaml", "a.YML", "a.b.json"] {
            assert!(Syntax::of(name).is_some(), "{name}");
        }
        for name in [".a.yaml", "a.yaml~", "#a.yaml#", "a.yaml.swp", "..data", "README.md", "yaml", ".yaml"] {
            assert_eq!(Syntax::of(name), None, "{name}");
        }
    }
}
