//! File systems that fail: a BPF file system that is unmounted, a state folder on a full disk.

use super::setup::{actions, holds, is_clean, lab, status, streams, tells, until};
use policy_tests::{lab::Lab, net::Topology};
use std::{ffi::CString, fs, io, path::Path};

/// A file system at a folder, until it is dropped.
struct Mount(CString);

impl Mount {
    fn new(kind: &str, at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let target = CString::new(at.to_str().unwrap()).unwrap();
        let (kind, options) = (CString::new(kind).unwrap(), CString::new(options).unwrap());
        // SAFETY: strings that end with zero.
        let done =
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
        assert_eq!(done, 0, "mount at {}: {}", at.display(), io::Error::last_os_error());
        Self(target)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: a string that ends with zero.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

fn on_its_own_bpffs(lab: &mut Lab, at: &Path) {
    lab.strip().unwrap();
    lab.agent().set_bpffs(at);
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
}

#[test]
fn without_its_bpf_file_system_everything_stays_in_force_and_is_pinned_again_later() {
    let mut lab = lab(Topology::Ptp, &["--self-check", "200ms"]);
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::new("bpf", &folder.path().join("fs"), "");
    let pins = folder.path().join("fs/pins");
    on_its_own_bpffs(&mut lab, &pins);
    let streams = streams(&lab);
    drop(mount);
    let told = until(&mut lab, "the failure", |status| tells(status, "pins cannot be put back"));
    assert_eq!(told["ready"], false, "{told:#}");
    // Policies and pods go on.
    lab.act_without_waiting(&actions(true)).unwrap();
    lab.act_without_waiting("[{pod: {add: {x/new: {labels: {app: a}}}}}]").unwrap();
    until(&mut lab, "the new pod", |status| status["endpoints"]["enforced"] == 6);
    holds(&lab, true);
    lab.expect("x/c", "x/new", "TCP/80", false);
    let mount = Mount::new("bpf", &folder.path().join("fs"), "");
    until(&mut lab, "readiness", |status| status["ready"] == true);
    // Maps and links are pinned again in turn: what the next turn would find is found now.
    lab.agent().ctl(["verify"]).unwrap();
    is_clean(&mut lab);
    lab.agent().kill().unwrap();
    holds(&lab, true);
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    streams.stop().unwrap().nothing_lost().unwrap();
    is_clean(&mut lab);
    lab.strip().unwrap();
    drop(mount);
}

/// A policy with this many rules, for ports that nobody uses.
fn more(rules: u16) -> String {
    let rules: Vec<String> = (0..rules).map(|n| format!("{{ports: [{{port: {}}}]}}", 20_000 + n)).collect();
    format!(
        "[{{apply: {{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: x, name: more}}, \
          spec: {{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Ingress], ingress: [{}]}}}}}}]",
        rules.join(", ")
    )
}

#[test]
fn on_a_full_disk_policies_go_on_and_it_is_told() {
    let mut lab = lab(Topology::Ptp, &[]);
    let streams = streams(&lab);
    lab.agent().kill().unwrap();
    let state = lab.agent().state_dir();
    let kept = fs::read(state.join("state.json")).unwrap();
    let mount = Mount::new("tmpfs", &state, "size=64k");
    fs::write(state.join("state.json"), kept).unwrap();
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    // Whatever fits.
    let mut filler = fs::File::create(state.join("filler")).unwrap();
    while io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    lab.act(&actions(true)).unwrap();
    // A new rule has a number, which is to be kept.
    lab.act(&more(80)).unwrap();
    holds(&lab, true);
    let told = status(&mut lab);
    assert!(tells(&told, "the state cannot be saved"), "{told:#}");
    assert_eq!(told["ready"], true, "what is enforced does not depend on it: {told:#}");
    // The next agent finds the old state, whole.
    lab.agent().kill().unwrap();
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    holds(&lab, true);
    drop(filler);
    fs::remove_file(state.join("filler")).unwrap();
    lab.act(&actions(false)).unwrap();
    lab.act(&more(90)).unwrap();
    until(&mut lab, "a saved state", |status| !tells(status, "the state cannot be saved"));
    streams.stop().unwrap().nothing_lost().unwrap();
    holds(&lab, false);
    lab.agent().kill().unwrap();
    drop(mount);
}
