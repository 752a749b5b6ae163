//! Rules on single files: a header that says the idea, a size, no silenced lints, no machine's paths.

use super::{Finding, Source};

const LONGEST: usize = 500;
/// The kernel programs are glue around shared code; there is little to say in one file.
const LONGEST_KERNEL: usize = 150;
const UNFINISHED: &[&str] = &["todo", "unimplemented", "dbg"];
/// Folders of one machine. Not written as a whole: this file is checked too.
const PLACES: &[&[&str]] = &[&["/tmp", "/wt"], &["/wo", "rk/"], &["/ro", "ot/"], &["/ho", "me/"]];

/// All rules on one file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = places(source);
    if source.path.ends_with(".rs") {
        findings.extend(header(source));
        findings.extend(size(source));
        findings.extend(code(source));
    }
    findings
}

fn header(source: &Source) -> Option<Finding> {
    let first = source.text.lines().next().unwrap_or_default();
    let fine = first.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty());
    let hint = "begin the file with `//!` and its one idea";
    (!fine).then(|| finding(source, 1, "the file does not say what it is".to_owned(), hint))
}

fn size(source: &Source) -> Option<Finding> {
    let limit = if source.path.starts_with("policy-ebpf/") { LONGEST_KERNEL } else { LONGEST };
    let lines = source.text.lines().count();
    let what = format!("{lines} lines, {limit} are the limit");
    (lines > limit).then(|| finding(source, lines, what, "split the file by ideas"))
}

fn code(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        let attribute = line.trim_start().starts_with("#[") || line.trim_start().starts_with("#![");
        if attribute && word_then(line, "allow", '(') {
            let hint = "write `#[expect(lint, reason = \"...\")]`";
            findings.push(finding(source, index + 1, "a lint is silenced by `allow`".to_owned(), hint));
        }
        for name in UNFINISHED.iter().filter(|name| word_then(line, name, '!')) {
            findings.push(finding(
                source,
                index + 1,
                format!("`{name}!` in code"),
                "finish it, or return an error",
            ));
        }
    }
    findings
}

fn places(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        for place in PLACES.iter().map(|parts| parts.concat()) {
            // A path that continues a longer one ("net/work/") or an address is something else.
            let starts = line.match_indices(&place).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| !(c.is_alphanumeric() || "._-/*}".contains(c)))
            });
            if starts {
                let hint = "the repository knows no machine; use a relative path or a variable";
                findings.push(finding(source, index + 1, format!("a machine's path: {place}"), hint));
            }
        }
    }
    findings
}

/// Whether the line has this word, not as the end of a longer one, followed by this character.
fn word_then(line: &str, word: &str, next: char) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        after == Some(next) && before.is_none_or(|c| !(c.is_alphanumeric() || "_\"`".contains(c)))
    })
}

fn finding(source: &Source, line: usize, what: String, hint: &'static str) -> Finding {
    Finding { file: source.path.clone(), line, what, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        check(&source).into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn a_good_file_passes() {
        let text =
            "//! One idea.\nfn allow(x: u8) -> u8 { x }\n// todo! is only spoken of\nfn f() { allow(1); }\n";
        assert_eq!(whats("a.rs", text), [""; 0]);
        assert_eq!(whats("notes.md", "no header\n"), [""; 0]);
    }

    #[test]
    fn header_and_size() {
        assert_eq!(whats("a.rs", "fn main() {}\n"), ["1: the file does not say what it is"]);
        assert_eq!(whats("a.rs", "//!\n"), ["1: the file does not say what it is"]);
        let long = format!("//! Long.\n{}", "\n".repeat(150));
        assert_eq!(whats("policy-ebpf/src/a.rs", &long), ["151: 151 lines, 150 are the limit"]);
        assert_eq!(whats("policy-common/src/a.rs", &long), [""; 0]);
    }

    #[test]
    fn silenced_lints_and_unfinished_code() {
        let attribute = format!("//! A.\n#[{}(dead_code)]\nfn f() {{ {}!() }}\n", "allow", "todo");
        assert_eq!(whats("a.rs", &attribute), ["2: a lint is silenced by `allow`", "3: `todo!` in code"]);
        let conditional = format!("//! A.\n#![cfg_attr(test, {}(dead_code))]\n", "allow");
        assert_eq!(whats("a.rs", &conditional).len(), 1);
    }

    #[test]
    fn paths_of_a_machine() {
        let place = PLACES[2].concat();
        assert_eq!(whats("a.md", &format!("see {place}x")), [format!("1: a machine's path: {place}")]);
        assert_eq!(whats("a.md", &format!("under sysroot{place}x")), [""; 0]);
    }
}
