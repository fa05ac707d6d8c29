//! Goal: a cgroup is killed and removed with all that is below it. Method: the machine's own cgroup
//! v2, where root may use it.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::cgroups::locate;
use std::fs;

const DEADLINE: Duration = Duration::from_secs(30);

/// A cgroup of the test in this process's own, or `None`, with the reason printed.
fn cgroup(test: &str) -> Option<(Cgroup, String)> {
    let read = |path| fs::read_to_string(path).unwrap();
    let path = locate(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    let Some(path) = path.filter(|_| nix::unistd::geteuid().is_root()) else {
        eprintln!("skipped: {test} needs root and cgroup v2");
        return None;
    };
    let base = Cgroup::open(&path).unwrap();
    let name = format!("guest-agent-test-{test}-{}", std::process::id());
    base.make_child(&name).unwrap();
    Some((base, name))
}

/// A process in the cgroup.
fn sleeper(cgroup: &Cgroup) -> Child {
    let child = Command::new("sleep")
        .arg("600")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    cgroup
        .write("cgroup.procs", &child.id().to_string())
        .unwrap();
    child
}

fn check_kill(test: &str, kill: impl Fn(&Cgroup) -> io::Result<()>) {
    let Some((base, name)) = cgroup(test) else {
        return;
    };
    let top = base.open_child(&name).unwrap();
    let below = top.make_child("below").unwrap();
    let mut children = [sleeper(&top), sleeper(&below)];
    assert_eq!(top.processes().unwrap().len(), 2);
    assert!(!base.remove_child(&name).unwrap(), "it has processes");
    assert!(!top.is_empty_within(Duration::from_millis(10)).unwrap());
    kill(&top).unwrap();
    assert!(top.is_empty_within(DEADLINE).unwrap());
    for child in &mut children {
        child.wait().unwrap();
    }
    assert!(base.remove_child(&name).unwrap());
    assert!(base.remove_child(&name).unwrap(), "it is gone already");
}

#[test]
fn a_cgroup_is_killed_with_those_below_it() {
    check_kill("kill", Cgroup::kill);
}

#[test]
fn a_kernel_without_cgroup_kill_takes_signals() {
    check_kill("each", Cgroup::kill_each);
}

#[test]
fn a_lock_is_held_once_and_ends_with_its_owner() {
    let Some((base, name)) = cgroup("lock") else {
        return;
    };
    let lock = base.lock_child(&name, Duration::ZERO).unwrap();
    let errno = |result: io::Result<Cgroup>| result.unwrap_err().raw_os_error();
    let second = base.lock_child(&name, Duration::ZERO);
    assert_eq!(errno(second), Some(libc::EWOULDBLOCK));
    drop(lock);
    drop(base.lock_child(&name, Duration::ZERO).unwrap());
    assert!(base.children().unwrap().contains(&name));
    assert!(base.remove_child(&name).unwrap());
}
