//! The machine around the toolchain: programs, file systems, kernel features.

use std::{fs, path::Path};

use super::{Mend, Missing, Scope, apt, toolchain::numbers};
use crate::command;

/// A program that a scope calls.
struct Program {
    name: &'static str,
    package: &'static str,
    why: &'static str,
    scopes: &'static [Scope],
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "ip",
        package: "iproute2",
        why: "tests look at links",
        scopes: &[Scope::Test, Scope::Bench],
    },
    Program {
        name: "tc",
        package: "iproute2",
        why: "tests look at filters",
        scopes: &[Scope::Test, Scope::Bench],
    },
    Program {
        name: "nft",
        package: "nftables",
        why: "tests translate addresses, benchmarks compare with it",
        scopes: &[Scope::Test, Scope::Bench],
    },
    Program {
        name: "nginx",
        package: "nginx",
        why: "tests isolate it by the shipped example",
        scopes: &[Scope::Test],
    },
    Program {
        name: "psql",
        package: "postgresql",
        why: "tests isolate it by the shipped example",
        scopes: &[Scope::Test],
    },
    Program {
        name: "systemctl",
        package: "systemd",
        why: "tests run the shipped units under it",
        scopes: &[Scope::Test],
    },
    Program {
        name: "setpriv",
        package: "util-linux",
        why: "tests run PostgreSQL as its own user",
        scopes: &[Scope::Test],
    },
    Program {
        name: "iptables",
        package: "iptables",
        why: "benchmarks compare with it",
        scopes: &[Scope::Bench],
    },
    Program {
        name: "xz",
        package: "xz-utils",
        why: "unpacks the modules of a VM's kernel",
        scopes: &[Scope::Vm],
    },
    Program {
        name: "strip",
        package: "binutils",
        why: "makes test binaries small for VMs",
        scopes: &[Scope::Vm],
    },
    Program {
        name: "ldd",
        package: "libc-bin",
        why: "names the libraries that a VM needs",
        scopes: &[Scope::Vm],
    },
    Program {
        name: "faketime",
        package: "faketime",
        why: "a suite lets the agent's clock jump",
        scopes: &[Scope::Test],
    },
    Program {
        name: "curl",
        package: "curl",
        why: "suites ask the API server",
        scopes: &[Scope::Api, Scope::Cluster],
    },
    Program {
        name: "openssl",
        package: "openssl",
        why: "makes the API server's key",
        scopes: &[Scope::Api, Scope::Cluster],
    },
    Program {
        name: "gcc",
        package: "gcc",
        why: "compiles the program that holds a pod's namespaces",
        scopes: &[Scope::Api, Scope::Cluster],
    },
    Program {
        name: "iptables",
        package: "iptables",
        why: "kube-proxy and the CNI plugins call it",
        scopes: &[Scope::Cluster],
    },
    Program {
        name: "conntrack",
        package: "conntrack",
        why: "kube-proxy forgets connections with it",
        scopes: &[Scope::Cluster],
    },
    Program {
        name: "nft",
        package: "nftables",
        why: "kube-proxy calls it in one of its modes",
        scopes: &[Scope::Cluster],
    },
    Program {
        name: "nsenter",
        package: "util-linux",
        why: "starts the second node in its namespace",
        scopes: &[Scope::Cluster],
    },
    Program {
        name: "ip",
        package: "iproute2",
        why: "makes the network of the nodes",
        scopes: &[Scope::Cluster],
    },
];

/// The oldest Go that compiles this Kubernetes.
const OLDEST_GO: (u32, u32) = (1, 26);

/// The emulator of QEMU 7 breaks `cmpxchg16b`, which the kernels of today use everywhere.
const OLDEST_QEMU: u32 = 10;
const QEMU: &str = "qemu-system-x86_64";

/// Everything of a scope that is not there.
pub(super) fn missing(scope: Scope) -> Vec<Missing> {
    let mut missing: Vec<Missing> = PROGRAMS
        .iter()
        .filter(|program| program.scopes.contains(&scope) && command::find(program.name).is_none())
        .map(|program| Missing {
            what: format!("the program '{}'", program.name),
            why: program.why,
            mend: Mend::Packages(vec![program.package.to_owned()]),
        })
        .collect();
    match scope {
        Scope::Build => {}
        Scope::Test | Scope::Bench => missing.extend(kernel()),
        Scope::Vm => missing.extend(qemu()),
        Scope::Api | Scope::Cluster => missing.extend(go()),
        Scope::Image => missing.extend(static_library()),
    }
    missing
}

fn static_library() -> Option<Missing> {
    // The compiler's driver answers with the bare name when it has no such file.
    let told = command::output(command::new("cc").arg("-print-file-name=libc.a")).unwrap_or_default();
    if Path::new(told.trim()).is_absolute() {
        return None;
    }
    let what = "the C library as an archive (libc.a)".to_owned();
    let mend = Mend::Packages(vec!["libc6-dev".to_owned()]);
    Some(Missing { what, why: "programs of the image need no library", mend })
}

fn go() -> Option<Missing> {
    let (major, minor) = OLDEST_GO;
    // "go version go1.26.8 linux/amd64"; an older one may fetch the one that the module asks for
    let here = command::output(command::new("go").arg("version")).ok();
    let version = here.as_deref().and_then(|text| text.split(" go").nth(1)).map(numbers);
    let fetches = command::output(command::new("go").args(["env", "GOTOOLCHAIN"]))
        .is_ok_and(|text| text.trim() != "local" && version >= Some((1, 21)));
    if version >= Some(OLDEST_GO) || fetches {
        return None;
    }
    let package = format!("golang-{major}.{minor}-go");
    let mend = match apt::candidate(&package) {
        // Not on the path: the command that follows makes it so.
        Some(_) if apt::installed(&package) => {
            Mend::Commands(vec![format!("ln -s /usr/lib/go-{major}.{minor}/bin/go /usr/local/bin/go")])
        }
        Some(_) => Mend::Packages(vec![package]),
        None => Mend::ByHand(format!("install Go {major}.{minor} or later from https://go.dev/dl/")),
    };
    Some(Missing { what: format!("Go {major}.{minor}"), why: "compiles Kubernetes", mend })
}

fn kernel() -> Vec<Missing> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounted = |kind: &str, at: Option<&str>| {
        mounts
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(1);
                Some((words.next()?, words.next()?))
            })
            .any(|(place, found)| found == kind && at.is_none_or(|at| at == place))
    };
    let mut missing = Vec::new();
    if !mounted("bpf", Some("/sys/fs/bpf")) {
        missing.push(Missing {
            what: "the BPF file system".to_owned(),
            why: "keeps the agent's programs and maps over a restart",
            mend: Mend::Mount("mount -t bpf bpf /sys/fs/bpf"),
        });
    }
    if !mounted("cgroup2", None) {
        missing.push(Missing {
            what: "the cgroup2 file system".to_owned(),
            why: "tests put processes into groups",
            mend: Mend::Mount("mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        });
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push(Missing {
            what: "type information of the running kernel (/sys/kernel/btf/vmlinux)".to_owned(),
            why: "the loader reads it",
            mend: Mend::ByHand("boot a kernel built with CONFIG_DEBUG_INFO_BTF".to_owned()),
        });
    }
    missing
}

fn qemu() -> Option<Missing> {
    let here = command::find(QEMU).and_then(|program| {
        let text = command::output(command::new(&program.to_string_lossy()).arg("--version")).ok()?;
        Some(numbers(text.split("version ").nth(1)?).0)
    });
    if here.is_some_and(|major| major >= OLDEST_QEMU) {
        return None;
    }
    let what = match here {
        Some(major) => format!("QEMU {OLDEST_QEMU} (here is {major})"),
        None => format!("QEMU {OLDEST_QEMU}"),
    };
    // "1:10.0.2+ds-2~bpo12+1": the part before the colon is not the version
    let offered = apt::candidate("qemu-system-x86");
    let offered = offered.as_deref().map(|version| numbers(version.rsplit(':').next().unwrap_or(version)).0);
    let mend = if offered.is_some_and(|major| major >= OLDEST_QEMU) {
        Mend::Packages(vec!["qemu-system-x86".to_owned()])
    } else if apt::is_debian() {
        Mend::Backport("qemu-system-x86")
    } else {
        Mend::ByHand(format!("install {QEMU}, version {OLDEST_QEMU} or later"))
    };
    Some(Missing { what, why: "emulates machines with other kernels", mend })
}
