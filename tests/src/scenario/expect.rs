//! Truth tables: every pair of places with the verdict that the scenario gives it.

use super::{
    Port,
    schema::Case,
    state::{Place, State, Where},
    step::{Answer, Expect, Rule, Side},
};
use crate::net::Family;
use anyhow::{Context, Result, bail, ensure};
use std::{collections::BTreeMap, fmt};

/// One new connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// Name of the source's place.
    pub from: String,
    /// Name of the destination's place.
    pub to: String,
    /// What it carries.
    pub port: Port,
    /// Addresses it uses.
    pub family: Family,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {} {:?}", self.from, self.to, self.port, self.family)
    }
}

/// A pair and the truth about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The pair.
    pub pair: Pair,
    /// Whether it passes.
    pub allow: bool,
    /// Whether the destination's ingress lets it pass, where the file says so or the verdict implies it.
    pub ingress: Option<bool>,
    /// Whether the source's egress lets it pass, where the file says so or the verdict implies it.
    pub egress: Option<bool>,
    /// Whether the sender is told of a denial, where the file says so.
    pub told: Option<bool>,
    /// How it is asked.
    pub how: How,
}

/// How a pair is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct How {
    /// Who answers.
    pub answer: Answer,
    /// By sockets that are not connected.
    pub unconnected: bool,
}

impl Expected {
    /// The truth table of one step.
    pub fn table(case: &Case, expect: &Expect, state: &State) -> Result<Vec<Expected>> {
        let places = state.places();
        let base = expect.default.or(case.defaults.verdict).unwrap_or(Side::Allow);
        let mut cells: BTreeMap<Pair, Cell> = BTreeMap::new();
        for pair in pairs(&places, &expect.ports, state, |from, to| from.in_tables && to.in_tables) {
            cells.insert(pair, Cell { verdict: base, ingress: None, egress: None, told: None });
        }
        for (n, rule) in expect.rules.iter().enumerate() {
            add_rule(&mut cells, rule, &places, expect, state)
                .with_context(|| format!("expect.rules[{n}]"))?;
        }
        for (port, text) in &expect.matrix {
            add_matrix(&mut cells, port, text, state).with_context(|| format!("expect.matrix.{port}"))?;
        }
        let kept = cells.into_iter().filter(|(_, cell)| cell.verdict != Side::Skip);
        let how = How { answer: expect.answer, unconnected: expect.unconnected };
        kept.map(|(pair, cell)| cell.finish(pair, how)).collect()
    }

    /// A pair that passes.
    pub fn open(pair: Pair) -> Expected {
        let sides = Some(true);
        Expected { pair, allow: true, ingress: sides, egress: sides, told: None, how: How::default() }
    }

    /// A table in which every pair of the state passes: what holds while there is no policy.
    pub fn all_open(ports: &[Port], state: &State) -> Vec<Expected> {
        let open = pairs(&state.places(), ports, state, |from, to| from.in_tables && to.in_tables);
        open.into_iter().map(Self::open).collect()
    }

    /// What a wire shows of it, where only pods of the node under test are enforced; `None` if it shows nothing.
    pub fn on_the_wire(&self, from: &Place, to: &Place) -> Option<bool> {
        match (from.at, to.at) {
            (Where::Pod, Where::Pod) => Some(self.allow),
            (Where::Pod, Where::Node | Where::Outside) => Some(self.egress.unwrap_or(self.allow)),
            (Where::Node | Where::Outside, Where::Pod) => Some(self.ingress.unwrap_or(self.allow)),
            (Where::Node | Where::Outside, Where::Node | Where::Outside) => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    verdict: Side,
    ingress: Option<Side>,
    egress: Option<Side>,
    told: Option<bool>,
}

impl Cell {
    fn finish(self, pair: Pair, how: How) -> Result<Expected> {
        let known = |side: Option<Side>| match side {
            Some(Side::Allow) => Some(true),
            Some(Side::Deny) => Some(false),
            Some(Side::Skip) | None => None,
        };
        let allow = self.verdict == Side::Allow;
        let (ingress, egress) = (known(self.ingress), known(self.egress));
        let contradicts = if allow {
            ingress == Some(false) || egress == Some(false)
        } else {
            ingress == Some(true) && egress == Some(true)
        };
        ensure!(!contradicts, "{pair}: the verdict contradicts its sides");
        ensure!(!allow || self.told.is_none(), "{pair}: nobody is told of what passes");
        let (ingress, egress) = match (allow, ingress, egress) {
            (true, _, _) => (Some(true), Some(true)),
            (false, Some(true), None) => (Some(true), Some(false)),
            (false, None, Some(true)) => (Some(false), Some(true)),
            (false, ingress, egress) => (ingress, egress),
        };
        Ok(Expected { pair, allow, ingress, egress, told: self.told, how })
    }
}

/// All pairs of different places, in every family both have, that `wanted` accepts.
fn pairs(
    places: &[Place],
    ports: &[Port],
    state: &State,
    wanted: impl Fn(&Place, &Place) -> bool,
) -> Vec<Pair> {
    let mut out = Vec::new();
    for from in places {
        for to in places.iter().filter(|to| to.name != from.name && wanted(from, to)) {
            let external = from.name.starts_with("ext:") && to.name.starts_with("ext:");
            for family in state.families.iter().filter(|_| !external).copied() {
                if from.ip(family).is_none() || to.ip(family).is_none() {
                    continue;
                }
                let pair =
                    |port: &Port| Pair { from: from.name.clone(), to: to.name.clone(), port: *port, family };
                out.extend(ports.iter().map(pair));
            }
        }
    }
    out
}

fn add_rule(
    cells: &mut BTreeMap<Pair, Cell>,
    rule: &Rule,
    places: &[Place],
    expect: &Expect,
    state: &State,
) -> Result<()> {
    // A wildcard covers what the table covers; a node or a host-network pod is named in full or not at all.
    let named = |patterns: &[String], place: &Place| {
        patterns
            .iter()
            .any(|pattern| *pattern == place.name || (place.in_tables && matches(pattern, &place.name)))
    };
    for port in &rule.ports {
        ensure!(expect.ports.contains(port), "{port} is not in expect.ports");
    }
    let mut used = false;
    let chosen = pairs(places, &expect.ports, state, |from, to| {
        named(rule.from.patterns(), from) && named(rule.to.patterns(), to)
    });
    for pair in chosen {
        let fits = (rule.ports.is_empty() || rule.ports.contains(&pair.port))
            && rule.family.is_none_or(|family| family == pair.family);
        if fits {
            let cell =
                Cell { verdict: rule.verdict, ingress: rule.ingress, egress: rule.egress, told: rule.told };
            cells.insert(pair, cell);
            used = true;
        }
    }
    ensure!(used, "{:?} to {:?} matches no pair", rule.from.patterns(), rule.to.patterns());
    Ok(())
}

fn matches(pattern: &str, name: &str) -> bool {
    let part = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    if pattern == "*" {
        return true;
    }
    if let (Some(pattern), Some(name)) = (pattern.strip_prefix("ext:"), name.strip_prefix("ext:")) {
        return part(pattern, name);
    }
    match (pattern.split_once('/'), name.split_once('/')) {
        (Some((a, b)), Some((x, y))) => part(a, x) && part(b, y),
        (_, _) => false,
    }
}

fn add_matrix(cells: &mut BTreeMap<Pair, Cell>, port: &str, text: &str, state: &State) -> Result<()> {
    let port: Port = port.parse().map_err(anyhow::Error::msg)?;
    let mut lines = text.lines().map(str::split_whitespace).map(Iterator::collect::<Vec<_>>);
    let columns = lines.next().context("the first line names the destinations")?;
    for row in lines {
        let Some((from, marks)) = row.split_first() else { continue };
        ensure!(marks.len() == columns.len(), "{from}: {} cells for {} columns", marks.len(), columns.len());
        for (to, mark) in columns.iter().zip(marks) {
            let verdict = match *mark {
                "." => Side::Allow,
                "X" => Side::Deny,
                "-" => Side::Skip,
                other => bail!("{from} to {to}: {other:?} is none of . X -"),
            };
            for family in state.families.iter().copied() {
                let pair = Pair { from: (*from).to_owned(), to: (*to).to_owned(), port, family };
                let known = cells.contains_key(&pair) || from == to;
                ensure!(known, "{pair}: not a pair of this table");
                cells.insert(pair, Cell { verdict, ingress: None, egress: None, told: None });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const CASE: &str = r#"
schema: netpol-case/v1
id: test/table
title: later rules win
cluster:
  ipFamilies: [v4]
  pods: {x/a: {}, x/b: {}, y/a: {node: far}}
  nodes: {far: {}}
  external: {web: {ips: [198.51.100.7]}}
steps:
- expect:
    ports: [TCP/80, UDP/53]
    default: deny
    rules:
    - {from: "x/*", to: "*", verdict: allow}
    - {from: x/a, to: x/b, ports: [UDP/53], verdict: deny, ingress: deny}
    - {from: y/a, to: x/a, verdict: deny, egress: deny, ingress: allow}
    - {from: "node:node-1", to: x/a, ports: [TCP/80], verdict: allow}
    - {from: "ext:*", to: "x/*", verdict: skip}
"#;

    #[test]
    fn rules_apply_in_order_over_the_default() {
        let case = parse(CASE).unwrap();
        let state = State::new(&case).unwrap();
        let table = Expected::table(&case, case.steps[0].expect.as_ref().unwrap(), &state).unwrap();
        let find = |from: &str, to: &str, port: &str| {
            table
                .iter()
                .find(|e| e.pair.from == from && e.pair.to == to && e.pair.port.to_string() == port)
                .cloned()
        };
        assert!(find("x/a", "x/b", "TCP/80").unwrap().allow);
        let denied = find("x/a", "x/b", "UDP/53").unwrap();
        assert_eq!((denied.allow, denied.ingress, denied.egress), (false, Some(false), None));
        assert!(!find("y/a", "ext:web", "TCP/80").unwrap().allow);
        assert!(find("ext:web", "x/a", "TCP/80").is_none());
        assert!(find("node:node-1", "x/a", "TCP/80").unwrap().allow);
        assert!(find("node:node-1", "x/b", "TCP/80").is_none(), "nodes are in no table unless named");
        let places = state.places();
        let place = |name: &str| places.iter().find(|p| p.name == name).unwrap();
        let far = find("y/a", "x/a", "TCP/80").unwrap();
        assert_eq!(
            far.on_the_wire(place("y/a"), place("x/a")),
            Some(true),
            "nobody enforces the far pod's egress"
        );
        assert_eq!(far.on_the_wire(place("y/a"), place("ext:web")), None);
    }

    #[test]
    fn a_rule_that_is_about_nobody_is_an_error() {
        let case = parse(&CASE.replace("from: y/a", "from: y/typo")).unwrap();
        let state = State::new(&case).unwrap();
        let error = Expected::table(&case, case.steps[0].expect.as_ref().unwrap(), &state).unwrap_err();
        assert!(format!("{error:#}").contains("expect.rules[2]"), "{error:#}");
    }

    #[test]
    fn an_unknown_field_is_an_error_with_its_path() {
        let error = parse(&CASE.replace("default: deny", "defualt: deny")).unwrap_err();
        assert!(error.to_string().starts_with("steps[0].expect: unknown field `defualt`"), "{error}");
    }

    #[test]
    fn blocks_of_text_say_the_same() {
        let text = CASE.split("    rules:").next().unwrap().to_owned()
            + "    matrix:\n      TCP/80: |\n        x/a x/b\n        x/a - .\n        x/b X -\n";
        let case = parse(&text).unwrap();
        let state = State::new(&case).unwrap();
        let table = Expected::table(&case, case.steps[0].expect.as_ref().unwrap(), &state).unwrap();
        let allowed: Vec<String> = table.iter().filter(|e| e.allow).map(|e| e.pair.to_string()).collect();
        assert_eq!(allowed, ["x/a -> x/b TCP/80 V4"]);
    }
}
