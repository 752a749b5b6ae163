//! What documents say is tested is tested: every question of the index has its scenario or its test, and every rule
//! that docs/semantics.md states names one.

use policy_tests::scenario;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Numbers of the index.
const QUESTIONS: std::ops::RangeInclusive<usize> = 1..=160;

/// Scenario ids and names of test functions.
struct Known {
    scenarios: BTreeSet<String>,
    tests: BTreeSet<String>,
}

impl Known {
    fn read() -> Self {
        let scenarios =
            scenario::all().expect("scenario files read").into_iter().map(|(_, case)| case.id).collect();
        let mut tests = BTreeSet::new();
        for folder in ["policy-common", "policy-agent", "fuzz", "tests", "xtask"] {
            collect_tests(&scenario::root().join(folder), &mut tests);
        }
        assert!(tests.len() > 100, "tests were looked for in the wrong place");
        Self { scenarios, tests }
    }

    fn has(&self, name: &str) -> bool {
        if name.contains('/') { self.scenarios.contains(name) } else { self.tests.contains(name) }
    }
}

/// Names of functions that follow a `test` attribute.
fn collect_tests(folder: &Path, tests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry of the folder").path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect_tests(&path, tests);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names_in(&fs::read_to_string(&path).expect("a source file"), tests);
        }
    }
}

fn names_in(text: &str, tests: &mut BTreeSet<String>) {
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        let function = line.split_once("fn ").and_then(|(before, rest)| {
            let plain = before.split_whitespace().all(|word| matches!(word, "async" | "pub"));
            plain.then(|| rest.split('(').next().unwrap_or_default())
        });
        match function {
            Some(name) if marked => {
                tests.insert(name.to_owned());
                marked = false;
            }
            Some(_) => {}
            None => marked = marked || line == "#[test]" || line.starts_with("#[tokio::test"),
        }
    }
}

/// Words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Cells of the rows of a document's tables whose last column has this heading.
fn rows<'a>(text: &'a str, last: &str) -> Vec<Vec<&'a str>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            inside = inside && line.starts_with("|--");
            continue;
        };
        let cells: Vec<&str> = cells.split(" | ").collect();
        if cells.last() == Some(&last) {
            inside = true;
        } else if inside {
            rows.push(cells);
        }
    }
    rows
}

fn document(path: &str) -> String {
    let path: PathBuf = scenario::root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_question_is_answered_by_a_scenario_or_a_test() {
    let known = Known::read();
    let text = document("tests/scenarios/INDEX.md");
    let mut numbers = Vec::new();
    let mut named = BTreeSet::new();
    let mut wrong = Vec::new();
    for row in rows(&text, "answered by") {
        let [number, _, answers] = row[..] else { panic!("three columns: {row:?}") };
        numbers.push(number.parse::<usize>().unwrap());
        let answers: Vec<&str> = quoted(answers).collect();
        if answers.is_empty() {
            wrong.push(format!("{number}: no answer"));
        }
        for answer in answers {
            let own = format!("{number:0>3}");
            if !known.has(answer) {
                wrong.push(format!("{number}: there is no {answer}"));
            } else if answer.contains('/') && !answer.ends_with(&own) {
                wrong.push(format!("{number}: {answer} is that of another number"));
            }
            named.insert(answer.to_owned());
        }
    }
    assert!(numbers.iter().copied().eq(QUESTIONS), "each number once, in order: {numbers:?}");
    let edge = known.scenarios.iter().filter(|id| id.starts_with("edge/"));
    wrong.extend(edge.filter(|id| !named.contains(*id)).map(|id| format!("{id} is not in the index")));
    assert!(wrong.is_empty(), "tests/scenarios/INDEX.md:\n{}", wrong.join("\n"));
    println!("{} questions, {} answers", numbers.len(), named.len());
}

/// A range, `a` to `b`, is two names.
#[test]
fn every_rule_of_the_semantics_names_its_test() {
    let known = Known::read();
    let text = document("docs/semantics.md");
    let rules = rows(&text, "tested");
    let mut wrong = Vec::new();
    for row in &rules {
        let names: Vec<&str> = row.last().into_iter().flat_map(|cell| quoted(cell)).collect();
        if names.is_empty() {
            wrong.push(format!("no test: {}", row[0]));
        }
        wrong.extend(names.iter().filter(|name| !known.has(name)).map(|name| format!("there is no {name}")));
    }
    // Outside of the tables ids of scenarios stand in backticks too.
    let folders = ["edge/", "seeds/", "admission/", "k8s-e2e/", "network-policy-api/", "recipes/"];
    let ids = quoted(&text).filter(|word| folders.iter().any(|folder| word.starts_with(folder)));
    wrong.extend(ids.filter(|id| !known.has(id)).map(|id| format!("there is no {id}")));
    assert!(wrong.is_empty(), "docs/semantics.md:\n{}", wrong.join("\n"));
    assert!(rules.len() > 70, "{} rules: are the tables still read?", rules.len());
}

#[test]
fn what_the_proof_lists_exists() {
    let known = Known::read();
    let text = document("docs/proof.md");
    let rows = rows(&text, "tested");
    let names = rows.iter().filter_map(|row| row.last()).flat_map(|cell| quoted(cell));
    let missing: Vec<&str> = names.filter(|name| !known.has(name)).collect();
    assert!(missing.is_empty(), "docs/proof.md: there is no {missing:?}");
    assert!(rows.len() > 5 && rows.iter().all(|row| quoted(row[row.len() - 1]).count() > 0), "{rows:?}");
}

#[test]
fn names_of_tests_are_found_behind_their_attributes() {
    let mut found = BTreeSet::new();
    let text =
        "fn helper() {}\n#[test]\n#[ignore]\nfn one() {\n  x\n}\n#[tokio::test(flavor)]\nasync fn two() {}";
    names_in(text, &mut found);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["one", "two"]);
}
