//! Guests with a network interface: clones get an address of their own, on a link that stays up.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use tests::process::run;

use crate::Case;
use crate::machine::Machine;

pub(crate) const CASES: &[Case] = &[
    (
        "clones_have_a_network_of_their_own",
        clones_have_a_network_of_their_own,
    ),
    (
        "a_network_that_cannot_be_is_said",
        a_network_that_cannot_be_is_said,
    ),
];

/// Why no case here can run on this machine.
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

/// A tap device of this machine, gone with the value.
struct Tap(&'static str);

impl Tap {
    fn new(name: &'static str, addresses: &[&str]) -> Self {
        ip(&["tuntap", "add", name, "mode", "tap"]);
        let tap = Self(name);
        ip(&["link", "set", name, "up"]);
        for address in addresses {
            let mut words = vec!["address", "add", address, "dev", name];
            if address.contains(':') {
                words.push("nodad");
            }
            ip(&words);
        }
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The machine ends soon, and the device with it.
        let _ = Command::new("ip").args(["link", "delete", self.0]).output();
    }
}

#[track_caller]
fn ip(words: &[&str]) {
    drop(run(Command::new("ip").args(words)).exits(0));
}

/// Fails unless the guest answers at this address. Nobody listens there, which it says itself.
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

const CARRIER_CHANGES: &str = "cat /sys/class/net/eth0/carrier_changes";

fn clones_have_a_network_of_their_own(machine: &Machine) {
    let _taps = [
        Tap::new("labtap0", &["10.77.0.1/24"]),
        Tap::new("labtap1", &["10.77.1.1/24", "fd77::1/64"]),
    ];
    let mut words = machine.boot_arguments("origin");
    let network = ["--nic", "labtap0,mac=02:00:00:00:77:02"];
    words.extend(network.map(str::to_owned));
    words.extend(
        [
            "--net-address",
            "10.77.0.2/24",
            "--net-gateway",
            "10.77.0.1",
        ]
        .map(str::to_owned),
    );
    let record = machine.tool(words).exits(0).json();
    assert_eq!(record["network"]["address"], "10.77.0.2/24", "{record}");
    answers("10.77.0.2");
    reaches(machine, "origin", "10.77.0.1");
    let before = machine.exec("origin", CARRIER_CHANGES);
    let artifact = machine.snapshot("origin", "artifact", &["--stop"]);

    let restore = |name: &str, words: &[&str]| {
        let mut command = machine.restore_command(&artifact, name);
        drop(run(command.args(words)).exits(0));
    };
    // In the network of the origin, where the kernel takes a second address away with the first.
    restore(
        "one",
        &[
            "--net-address",
            "10.77.0.3/24",
            "--net-mac",
            "02:00:00:00:77:03",
        ],
    );
    restore(
        "two",
        &[
            "--nic",
            "labtap1",
            "--net-address",
            "10.77.1.2/24",
            "--net-gateway",
            "10.77.1.1",
            "--net-mac",
            "02:00:00:00:77:04",
        ],
    );
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
        assert_eq!(machine.exec(name, CARRIER_CHANGES), before, "{name}");
    }
    let neighbours = machine.exec("two", "cat /proc/net/arp");
    assert!(!neighbours.contains("10.77.0.1"), "{neighbours}");

    // A tap device that another VM is on, before a VMM is started.
    let mut command = machine.restore_command(&artifact, "three");
    drop(run(&mut command).exits(5).complains("another VM uses it"));
    machine.end("two");

    restore(
        "four",
        &[
            "--nic",
            "labtap1",
            "--net-address",
            "fd77::2/64",
            "--net-gateway",
            "fd77::1",
        ],
    );
    answers("fd77::2");
    let shown = machine.exec("four", "ip address show eth0; ip -6 route");
    assert!(shown.contains("inet 10.77.0.2/24"), "{shown}");
    assert!(shown.contains("inet6 fd77::2/64"), "{shown}");
    assert!(shown.contains("default via fd77::1"), "{shown}");
    assert_eq!(machine.exec("four", CARRIER_CHANGES), before);
    for name in ["one", "four"] {
        machine.end(name);
    }
    drop(machine.tool(["rm", "origin"]));
    machine.is_clean();
}

fn a_network_that_cannot_be_is_said(machine: &Machine) {
    let _tap = Tap::new("labtap0", &["10.77.0.1/24"]);
    let mut words = machine.boot_arguments("origin");
    words.extend(["--nic", "labtap0"].map(str::to_owned));
    drop(machine.tool(words).exits(0));
    let artifact = machine.snapshot("origin", "artifact", &["--stop"]);
    drop(machine.tool(["rm", "origin"]));

    for (words, exit, text) in [
        (&["--nic", "labtap9"][..], 5, "there is no tap device"),
        (&["--nic", "lo"], 5, "is no tap device"),
        (&["--count", "2"], 2, "each clone needs a tap device"),
        // The guest is not ready with half of a network.
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
        drop(run(command.args(words)).exits(exit).complains(text));
        machine.is_clean();
    }
    let plain = machine.artifact();
    let mut command = machine.restore_command(&plain, "clone");
    let ended = run(command.args(["--net-address", "10.77.0.2/24"])).exits(2);
    drop(ended.complains("boot --nic"));
    machine.is_clean();
}
