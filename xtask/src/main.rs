//! `cargo xtask`: the table of tasks.

mod bench;
mod build;
mod check;
mod cluster;
mod command;
mod demo;
mod fail;
mod fuzz;
mod image;
mod lint;
mod scenarios;
mod setup;
mod soak;
mod tally;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;

/// A task: its name, its arguments, one line about it, and what it runs.
struct Task {
    name: &'static str,
    args: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "setup",
        args: "[--bench] [--vm] [--kube] [--cluster]",
        about: "install or name what building and testing need (the other tasks do it themselves)",
        run: setup::task,
    },
    Task {
        name: "build",
        args: "[--release]",
        about: "build policy-agent and policyctl, with the kernel object inside",
        run: build::task,
    },
    Task {
        name: "image",
        args: "[--debug]",
        about: "the container image, as an archive for docker load or ctr import, from static binaries",
        run: image::task,
    },
    Task {
        name: "demo",
        args: "",
        about: "real policies on real packets between network namespaces, with drops that explain themselves (root)",
        run: demo::task,
    },
    Task {
        name: "test",
        args: "[FILTER] [--no-vm] [--no-kube] [--cluster]",
        about: "every test: unit, property, documentation, kernel, network namespaces, kernels in VMs (root)",
        run: test::task,
    },
    Task {
        name: "vm-test",
        args: "[--kernel K]... [--jobs N] [--fetch] [-- TEST-ARGS]",
        about: "the kernel suites on 5.10, 6.1, 6.12, 6.18 and sid, each in an emulated machine (root)",
        run: vm::task,
    },
    Task {
        name: "scenarios",
        args: "[--only RE] [--backend B]... [--file F]... [--output table|json]",
        about: "truth tables on evaluator, tables, testrun, wire, wire-bridge, cgroup; all that this user may run",
        run: scenarios::task,
    },
    Task {
        name: "soak",
        args: "[--pairs N] [--malformed N] [--repeat N] [--seed N] [--replay FILE]",
        about: "random worlds (10^7 pairs) and malformed packets (10^8): evaluator, tables and programs agree",
        run: soak::task,
    },
    Task {
        name: "fuzz",
        args: "[packet|decide|object|event]... [--seconds N] [--seed N] [--save]",
        about: "coverage-guided fuzzing of parser, decision, reader of objects and event codec, from the corpus",
        run: fuzz::task,
    },
    Task {
        name: "bench",
        args: "micro|path|scale",
        about: "costs of a packet (programs alone, a path beside other filters) and of the agent (root)",
        run: bench::task,
    },
    Task {
        name: "cluster",
        args: "up|down|test [--nodes 1|2] [--cni ptp|bridge] [--proxy iptables|nftables] [--dual-stack] [--no-agent]",
        about: "whole Kubernetes nodes in namespaces of their own, with the agent on them (root)",
        run: cluster::task,
    },
    Task { name: "fmt", args: "[--fix]", about: "check (or mend) the formatting", run: lint::fmt },
    Task { name: "lint", args: "", about: "clippy on all crates, warnings are errors", run: lint::lint },
    Task {
        name: "check",
        args: "",
        about: "design rules: dependencies, file headers and sizes, links in documents",
        run: check::task,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match fuzz::between(&args).unwrap_or_else(|| dispatch(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail::print(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else {
        list();
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        list();
        return Ok(());
    }
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) => (task.run)(rest),
        None => Err(fail::hint(
            format!("there is no task '{name}'"),
            "`cargo xtask` without argument lists the tasks",
        )),
    }
}

fn list() {
    println!("usage: cargo xtask TASK [ARGUMENTS]\n");
    let call = |task: &Task| format!("{} {}", task.name, task.args);
    let width = TASKS.iter().map(|task| call(task).len()).max().unwrap_or_default();
    for task in TASKS {
        println!("  {:width$}  {}", call(task), task.about);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lines_are_short() {
        for (i, task) in TASKS.iter().enumerate() {
            assert!(TASKS[..i].iter().all(|other| other.name != task.name), "{}", task.name);
            assert!(task.about.len() <= 100, "{}", task.name);
        }
    }

    #[test]
    fn an_unknown_task_is_an_error() {
        let error = dispatch(&["no-such-task".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no-such-task"));
    }
}
