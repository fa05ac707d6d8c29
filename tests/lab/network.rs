//! Guests with a network interface: clones get an address of their own, and their link stays up.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tests::process::run;

use crate::Case;
use crate::machine::{Machine, TIMEOUT, Vmm};

pub(crate) const CASES: &[Case] = &[
    (
        "clones_have_a_network_of_their_own",
        clones_have_a_network_of_their_own,
    ),
    ("a_network_of_ipv6", a_network_of_ipv6),
    ("metadata_of_a_clone", metadata_of_a_clone),
    ("a_clone_sees_its_epoch", a_clone_sees_its_epoch),
    (
        "a_network_that_cannot_be_is_said",
        a_network_that_cannot_be_is_said,
    ),
];

/// Why no case of this file can run on this machine, if so.
pub(crate) fn missing() -> Option<String> {
    if !Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun".to_owned());
    }
    let made = Command::new("ip")
        .args(["tuntap", "add", "labtap", "mode", "tap"])
        .output();
    match made {
        Err(err) => Some(format!("cannot run ip: {err}")),
        Ok(output) if !output.status.success() => Some("cannot make a tap device".to_owned()),
        Ok(_) => {
            drop(Tap("labtap"));
            None
        }
    }
}

/// A tap device of this machine, removed when dropped.
struct Tap(&'static str);

impl Tap {
    fn new(name: &'static str, addresses: &[&str]) -> Self {
        ip(&["tuntap", "add", name, "mode", "tap"]);
        let tap = Self(name);
        ip(&["link", "set", name, "up"]);
        for address in addresses {
            let mut args = vec!["address", "add", address, "dev", name];
            if address.contains(':') {
                args.push("nodad");
            }
            ip(&args);
        }
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The lab ends soon, and the device with it.
        let _ = Command::new("ip").args(["link", "delete", self.0]).output();
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    run(Command::new("ip").args(args)).exits(0);
}

/// Fails unless the guest answers at this address. No program listens there, so it refuses.
#[track_caller]
fn answers(address: &str) {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 9);
    let refused = TcpStream::connect_timeout(&address, tests::DEADLINE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
}

/// Fails unless the guest reaches this machine at `address`.
#[track_caller]
fn reaches(machine: &Machine, name: &str, address: &str) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello\n").unwrap();
    });
    let heard = machine.exec(name, &format!("nc {address} {port} </dev/null"));
    assert_eq!(heard, "hello\n");
    greeter.join().unwrap();
}

/// The tap devices of the cases, each in a network of its own.
fn taps() -> [Tap; 2] {
    [
        Tap::new("labtap0", &["10.77.0.1/24"]),
        Tap::new("labtap1", &["10.77.1.1/24", "fd77::1/64"]),
    ]
}

/// A snapshot of a machine that has used its network. It contains the number of link changes so
/// far.
fn artifact(machine: &Machine, more: &[&str]) -> PathBuf {
    let mut args = machine.boot_arguments("origin");
    let network = "--nic labtap0,mac=02:00:00:00:77:02 --net-address 10.77.0.2/24 \
                   --net-gateway 10.77.0.1";
    let network = network.split_whitespace().chain(more.iter().copied());
    args.extend(network.map(str::to_owned));
    let record = machine.tool(args).exits(0).json();
    assert_eq!(record["network"]["address"], "10.77.0.2/24", "{record}");
    answers("10.77.0.2");
    reaches(machine, "origin", "10.77.0.1");
    machine.exec(
        "origin",
        &format!("cat {CARRIER_CHANGES} >/tmp/carrier_changes"),
    );
    let artifact = machine.snapshot("origin", "artifact", &["--stop"]);
    machine.tool(["rm", "origin"]);
    artifact
}

#[track_caller]
fn restore(machine: &Machine, artifact: &Path, name: &str, args: &str) {
    let mut command = machine.restore_command(artifact, name);
    run(command.args(args.split_whitespace())).exits(0);
}

/// Fails if a clone's link went up or down since the snapshot.
#[track_caller]
fn link_stayed_up(machine: &Machine, name: &str) {
    // Not operstate: the kernel sets that up to a second after the carrier (net/core/link_watch.c).
    let line = format!("cat /tmp/carrier_changes {CARRIER_CHANGES} /sys/class/net/eth0/carrier");
    let shown = machine.exec(name, &line);
    let [before, now, carrier] = shown.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{shown}")
    };
    assert_eq!((before, carrier), (now, "1"), "{name}");
}

const CARRIER_CHANGES: &str = "/sys/class/net/eth0/carrier_changes";

fn clones_have_a_network_of_their_own(machine: &Machine) {
    let _taps = taps();
    let artifact = artifact(machine, &[]);
    // In the origin's network, where the kernel removes a second address together with the first.
    let near = "--net-address 10.77.0.3/24 --net-mac 02:00:00:00:77:03";
    restore(machine, &artifact, "one", near);
    let far = "--nic labtap1 --net-address 10.77.1.2/24 --net-gateway 10.77.1.1 \
               --net-mac 02:00:00:00:77:04";
    restore(machine, &artifact, "two", far);
    for (name, address, router, mac) in [
        ("one", "10.77.0.3", "10.77.0.1", "02:00:00:00:77:03"),
        ("two", "10.77.1.2", "10.77.1.1", "02:00:00:00:77:04"),
    ] {
        answers(address);
        reaches(machine, name, router);
        let shown = machine.exec(name, "ip address show eth0; ip route");
        assert!(shown.contains(&format!("inet {address}/24")), "{shown}");
        assert!(shown.contains(mac), "{shown}");
        assert!(shown.contains(&format!("default via {router}")), "{shown}");
        assert!(!shown.contains("10.77.0.2"), "{shown}");
        let link_local = format!("fe80::ff:fe00:{}", mac.replace(':', "").split_off(8));
        assert!(shown.contains(&link_local), "{shown}");
        assert!(!shown.contains("fe80::ff:fe00:7702"), "{shown}");
        link_stayed_up(machine, name);
    }
    let neighbours = machine.exec("two", "cat /proc/net/arp");
    assert!(!neighbours.contains("10.77.0.1"), "{neighbours}");

    // A tap device that another VM uses is found before a VMM is started.
    let mut command = machine.restore_command(&artifact, "three");
    run(&mut command).exits(5).complains("another VM uses it");
    for name in ["one", "two"] {
        machine.end(name);
    }
    machine.is_clean();
}

fn a_network_of_ipv6(machine: &Machine) {
    let _taps = taps();
    let artifact = artifact(machine, &[]);
    let network = "--nic labtap1 --net-address fd77::2/64 --net-gateway fd77::1";
    restore(machine, &artifact, "clone", network);
    answers("fd77::2");
    let shown = machine.exec("clone", "ip address show eth0; ip -6 route");
    assert!(shown.contains("inet 10.77.0.2/24"), "{shown}");
    assert!(shown.contains("inet6 fd77::2/64"), "{shown}");
    assert!(shown.contains("default via fd77::1"), "{shown}");
    link_stayed_up(machine, "clone");
    machine.end("clone");
    machine.is_clean();
}

fn a_network_that_cannot_be_is_said(machine: &Machine) {
    let _taps = taps();
    let artifact = artifact(machine, &[]);
    for (args, exit, text) in [
        (&["--nic", "labtap9"][..], 5, "there is no tap device"),
        (&["--nic", "lo"], 5, "is not a tap device"),
        (&["--count", "2"], 2, "each clone needs its own tap device"),
        // A guest with half of its network is not ready.
        (
            &[
                "--net-address",
                "10.77.0.2/24",
                "--net-gateway",
                "192.0.2.1",
            ],
            6,
            "cannot set the gateway of eth0",
        ),
    ] {
        let mut command = machine.restore_command(&artifact, "clone");
        run(command.args(args)).exits(exit).complains(text);
        machine.is_clean();
    }
}

/// Asks the metadata service for the epoch, with a token as its second version demands.
const ASK_EPOCH: &str = r"
ask() { timeout 10 nc 169.254.169.254 80 | tail -n 1; }
token=$(printf 'PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n' | ask)
printf 'GET /latest/host-tool/restore_epoch HTTP/1.1\r\nX-metadata-token: %s\r\n\r\n' $token | ask
";

fn metadata_of_a_clone(machine: &Machine) {
    let _taps = taps();
    let file = machine.path("metadata.json");
    std::fs::write(&file, r#"{"latest":{"role":"web"}}"#).unwrap();
    let file = file.to_str().unwrap();
    if machine.vmm == Vmm::Qemu {
        let mut args = machine.boot_arguments("origin");
        args.extend(["--nic", "labtap0", "--mmds", file].map(str::to_owned));
        machine
            .tool(args)
            .exits(2)
            .complains("QEMU has no metadata service");
        return machine.is_clean();
    }
    let artifact = artifact(machine, &["--mmds", file]);
    for name in ["one", "two"] {
        let mut command = machine.restore_command(&artifact, name);
        let record = run(command.args(["--mmds", file])).exits(0).json();
        let epoch = machine.exec(name, ASK_EPOCH);
        assert_eq!(epoch, record["generation"].as_str().unwrap(), "{record}");
        machine.end(name);
    }
    machine.is_clean();
}

/// Waits until the counters of a machine's agent match, and gives them. With each answer the
/// agent's loop completes a turn.
#[track_caller]
fn await_counters(
    machine: &Machine,
    name: &str,
    is_met: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let started_at = Instant::now();
    loop {
        let args = ["ps", "--json", "--name", name, "--timeout", TIMEOUT];
        let mut shown = machine.tool(args).exits(0).json();
        let guest = shown["guest"].take();
        if is_met(&guest["counters"]) {
            return guest;
        }
        assert!(started_at.elapsed() < tests::DEADLINE * 2, "{guest}");
    }
}

/// The agent's own watch of the metadata, through a snapshot and into a clone. The clone's VMM does
/// not know the token from before.
fn a_clone_sees_its_epoch(machine: &Machine) {
    if machine.vmm == Vmm::Qemu {
        // QEMU has no metadata service; `metadata_of_a_clone` covers it.
        return;
    }
    let _taps = taps();
    let file = machine.path("metadata.json");
    std::fs::write(&file, "{}").unwrap();
    let file = file.to_str().unwrap();
    let mut args = machine.boot_arguments("origin");
    let more = "--nic labtap0 --net-address 10.77.0.2/24 --net-gateway 10.77.0.1 \
                --append agent.mmds=1 --mmds";
    args.extend(more.split_whitespace().chain([file]).map(str::to_owned));
    machine.tool(args).exits(0);
    let before = await_counters(machine, "origin", |counters| {
        counters["mmds_reads"].as_u64() >= Some(1)
    });
    assert_eq!(before["counters"]["mmds_epochs"], 0, "{before}");
    let artifact = machine.snapshot("origin", "artifact", &["--stop"]);
    machine.tool(["rm", "origin"]);

    let mut command = machine.restore_command(&artifact, "clone");
    let record = run(command.args(["--mmds", file])).exits(0).json();
    let after = await_counters(machine, "clone", |counters| counters["mmds_epochs"] == 1);
    assert_eq!(after["generation"], record["generation"], "{after}");
    assert!(after["counters"]["rearms"].as_u64() > before["counters"]["rearms"].as_u64());
    assert_eq!(machine.exec("clone", "echo ready"), "ready\n");
    machine.end("clone");

    // A clone without metadata, and without an answer from the service, is ready as well.
    machine.restore(&artifact, "deaf");
    await_counters(machine, "deaf", |counters| {
        counters["mmds_failures"].as_u64() > before["counters"]["mmds_failures"].as_u64()
    });
    assert_eq!(machine.exec("deaf", "echo ready"), "ready\n");
    machine.end("deaf");
    machine.is_clean();
}
