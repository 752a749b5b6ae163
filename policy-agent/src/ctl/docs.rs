//! `docs/cli.md` says what the programs say: a section for each command, with exactly its flags.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

/// The text of a section: from its heading to the next one of any level.
fn section(page: &str, name: &str) -> Option<String> {
    let mut lines = page.lines().skip_while(|line| line.trim_start_matches('#').trim() != name);
    let heading = lines.next().filter(|line| line.starts_with('#'))?;
    let mut inside_code = false;
    let body: Vec<&str> = lines
        .take_while(|line| {
            inside_code ^= line.starts_with("```");
            inside_code || !line.starts_with('#')
        })
        .collect();
    Some(format!("{heading}\n{}", body.join("\n")))
}

/// First words of the cells that begin a table row with a flag: `--output FORM`, `-o`.
fn told_flags(section: &str) -> BTreeSet<String> {
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `-")?.split(" |").next());
    let words = cells.flat_map(|cell| {
        let flags = format!("`-{cell}");
        flags
            .split('`')
            .filter_map(|part| part.split_whitespace().next().map(str::to_owned))
            .filter(|word| word.starts_with('-'))
            .collect::<Vec<_>>()
    });
    words.collect()
}

fn real_flags(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter(|arg| !arg.is_global_set());
    let flags = own.flat_map(|arg| {
        [arg.get_long().map(|long| format!("--{long}")), arg.get_short().map(|short| format!("-{short}"))]
    });
    flags.flatten().filter(|flag| !["--help", "-h", "--version", "-V"].contains(&flag.as_str())).collect()
}

fn check(page: &str, command: &clap::Command, path: &str) {
    let subcommands: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
    for sub in &subcommands {
        check(page, sub, &format!("{path} {}", sub.get_name()));
    }
    if !subcommands.is_empty() {
        return;
    }
    let section = section(page, path).unwrap_or_else(|| panic!("no section {path}"));
    assert_eq!(told_flags(&section), real_flags(command), "flags of {path}: page, then program");
    for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
        let row = |text: &str| section.lines().any(|line| line.starts_with('|') && line.contains(text));
        let long = arg.get_long().unwrap_or_default();
        for value in arg.get_possible_values().iter().filter(|_| arg.get_action().takes_values()) {
            assert!(row(&format!("`{}`", value.get_name())), "{path} --{long}: value {}", value.get_name());
        }
        for default in arg.get_default_values().iter().filter(|_| arg.get_action().takes_values()) {
            let default = default.to_string_lossy();
            assert!(row(&format!("`{default}`")), "{path} --{long}: default {default}");
        }
        if let Some(variable) = arg.get_env().map(|variable| variable.to_string_lossy()) {
            assert!(row(&format!("`{variable}`")), "{path} --{long}: {variable}");
        }
    }
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    fs::read_to_string(&path).unwrap()
}

#[test]
fn the_page_tells_every_command_and_flag_of_policyctl() {
    let page = page();
    let mut command = crate::ctl::args::Cli::command();
    command.build();
    check(&page, &command, "policyctl");
    let general = section(&page, "policyctl").unwrap();
    let global: BTreeSet<String> = ["--socket", "--help", "-h", "--version", "-V"].map(str::to_owned).into();
    assert_eq!(told_flags(&general), global);
    assert!(general.contains(crate::ctl::args::DEFAULT_SOCKET));
}

#[test]
fn the_page_tells_every_command_and_flag_of_policy_agent() {
    let mut command = crate::cli::Cli::command();
    command.build();
    check(&page(), &command, "policy-agent");
}

#[test]
fn a_flag_that_the_page_leaves_out_is_noticed() {
    let page = "### x\n\n| `--one A`, `-o` | |\n| `--two` | |\n";
    let told = told_flags(&section(page, "x").unwrap());
    assert_eq!(told.into_iter().collect::<Vec<_>>(), ["--one", "--two", "-o"]);
    assert_eq!(section(page, "y"), None);
}
