//! Links in documents: the file that a relative link names exists, and so does the heading.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Source};

/// All relative links of all Markdown files.
pub(super) fn check(sources: &[Source], tracked: &BTreeSet<String>) -> Vec<Finding> {
    let documents: Vec<&Source> = sources.iter().filter(|source| source.path.ends_with(".md")).collect();
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        documents.iter().map(|source| (source.path.as_str(), anchors(&source.text))).collect();
    let mut findings = Vec::new();
    for source in documents {
        for (line, target) in links(&source.text) {
            if let Some(what) = broken(&source.path, &target, tracked, &anchors) {
                let hint = "links are relative to the file; anchors are headings in lower case with dashes";
                findings.push(Finding { file: source.path.clone(), line, what, hint });
            }
        }
    }
    findings
}

fn broken(
    from: &str,
    target: &str,
    tracked: &BTreeSet<String>,
    anchors: &BTreeMap<&str, BTreeSet<String>>,
) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() { from.to_owned() } else { resolve(from, path) };
    let folder = format!("{file}/");
    let exists =
        file.is_empty() || tracked.contains(&file) || tracked.iter().any(|path| path.starts_with(&folder));
    if !exists {
        return Some(format!("the link to '{target}' leads to no file"));
    }
    match anchors.get(file.as_str()) {
        Some(known) if !anchor.is_empty() && !known.contains(anchor) => {
            Some(format!("the link to '{target}' leads to no heading"))
        }
        Some(_) | None => None,
    }
}

/// The path from the root of what a file in `from` calls `path`.
fn resolve(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    if path.starts_with('/') {
        parts.clear();
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// The targets of `[text](target)`, `![text](target)` and `[name]: target`, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let target = after.split([')', ' ']).next().unwrap_or_default();
            links.push((number, target.trim_matches(['<', '>']).to_owned()));
            rest = after;
        }
        if let Some((name, target)) = line.strip_prefix('[').and_then(|line| line.split_once("]: "))
            && !name.contains(']')
        {
            links.push((number, target.split(' ').next().unwrap_or_default().to_owned()));
        }
    }
    links
}

/// The anchors that a Markdown renderer makes of headings, and those written as HTML.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for key in ["id=\"", "name=\""] {
            anchors
                .extend(line.split(key).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
        let title = line.trim_start_matches('#');
        if title.len() < line.len() && title.starts_with(' ') {
            let slug = slug(title.trim());
            let count = seen.entry(slug.clone()).or_default();
            anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
            *count += 1;
        }
    }
    anchors
}

fn slug(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// Lines outside of code, with their numbers; code inside a line is blanked.
fn prose(text: &str) -> Vec<(usize, String)> {
    let (mut lines, mut fenced) = (Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let outside = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            lines.push((index + 1, outside));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        let tracked = files.iter().map(|(path, _)| (*path).to_owned()).collect();
        check(&sources, &tracked)
            .into_iter()
            .map(|finding| format!("{}:{}", finding.file, finding.line))
            .collect()
    }

    #[test]
    fn good_links() {
        let readme = "# Title\n[a](docs/a.md#two-words) [up](#title) [dir](docs) [web](https://example.org/x)\n\
                      `[no](link.md)`\n```\n[no](link.md)\n```\n[ref]: docs/a.md\n";
        assert_eq!(
            whats(&[("README.md", readme), ("docs/a.md", "## Two words\n[back](../README.md)\n")]),
            [""; 0]
        );
    }

    #[test]
    fn broken_links() {
        assert_eq!(whats(&[("README.md", "\n[a](missing.md)")]), ["README.md:2"]);
        assert_eq!(whats(&[("README.md", "[a](#nothing)")]), ["README.md:1"]);
        assert_eq!(whats(&[("d/a.md", "[a](../b.md#x)"), ("b.md", "# y")]), ["d/a.md:1"]);
        assert_eq!(whats(&[("README.md", "# A\n\n[r]: gone.md")]), ["README.md:3"]);
    }

    #[test]
    fn headings_become_anchors() {
        let found = anchors("# The `flow` step, again!\n## A\n## A\n```\n# no\n```\n<a id=\"mark\"></a>\n");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "a-1", "mark", "the-flow-step-again"]);
    }
}
