//! Boot, exec, and the end of a machine.

use std::time::Instant;

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    ("boot_exec_stop", boot_exec_stop),
    ("what_is_known_of_a_machine", what_is_known_of_a_machine),
    ("exec_keeps_codes_and_bytes", exec_keeps_codes_and_bytes),
    (
        "a_killed_vmm_is_noticed_and_cleaned_up",
        a_killed_vmm_is_noticed_and_cleaned_up,
    ),
    (
        "a_killed_supervisor_loses_nothing",
        a_killed_supervisor_loses_nothing,
    ),
    ("a_health_check_in_a_machine", a_health_check_in_a_machine),
];

fn boot_exec_stop(machine: &Machine) {
    let record = machine.boot("vm");
    let phases = record["phases_us"].as_object().unwrap();
    for phase in ["spawn", "rebind", "probe"] {
        assert!(phases[phase].as_u64().unwrap() > 0, "{phase} in {record}");
    }
    assert_eq!(
        machine
            .exec("vm", "echo $$ && cat /proc/1/comm")
            .lines()
            .last(),
        Some("init")
    );
    // The agent has a higher priority than its commands.
    let niceness =
        "for p in 1 self; do read -r line </proc/$p/stat; set -- $line; echo ${19}; done";
    assert_eq!(machine.exec("vm", niceness), "-10\n0\n");
    machine.tool(["stop", "vm", "--timeout", TIMEOUT]).exits(0);
    assert_eq!(machine.processes(), [], "stop leaves no process");
    machine.tool(["rm", "vm"]).exits(0);
    machine.is_clean();
}

fn what_is_known_of_a_machine(machine: &Machine) {
    let record = machine.boot("vm");
    let listed = machine.tool(["ls", "--json"]).exits(0).out();
    assert!(listed.contains("\"vm\""), "{listed}");
    let inspected = machine.tool(["inspect", "vm", "--json"]).exits(0).json();
    assert_eq!(
        inspected["state"]["generation"], record["generation"],
        "{inspected}"
    );
    let taken = machine.tool(machine.boot_arguments("vm"));
    taken.exits(2).complains("vm");
    assert_eq!(machine.exec("vm", "echo still here"), "still here\n");
    let probe = machine
        .tool(["probe", "--name", "vm", "--json", "--timeout", TIMEOUT])
        .exits(0);
    assert_eq!(probe.json()["generation"], record["generation"]);
    machine.end("vm");
    machine.is_clean();
    machine.tool(["probe", "--name", "vm"]).complains("vm");
}

fn exec_keeps_codes_and_bytes(machine: &Machine) {
    machine.boot("vm");
    for code in [0, 1, 77, 255] {
        let line = format!("printf 'o\\000\\377\\r\\n'; printf 'e\\n' >&2; exit {code}");
        let ended = machine
            .tool(["exec", "--name", "vm", "--", "sh", "-c", &line])
            .exits(code);
        assert_eq!(
            (&ended.stdout[..], &ended.stderr[..]),
            (&b"o\0\xff\r\n"[..], &b"e\n"[..])
        );
    }
    machine
        .tool(["exec", "--name", "vm", "--", "no-such-program"])
        .exits(127);
    machine
        .tool(["exec", "--name", "vm", "--", "sh", "-c", "kill -9 $$"])
        .exits(137);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let output = machine.exec("vm", "seq 1 200000");
    assert!(
        output == expected,
        "{} bytes, not what the guest wrote",
        output.len()
    );
    machine.end("vm");
}

fn a_killed_vmm_is_noticed_and_cleaned_up(machine: &Machine) {
    let record = machine.boot("vm");
    let pid = u32::try_from(record["vmm"]["pid"].as_u64().unwrap()).unwrap();
    tests::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
    let ended = machine.tool(["exec", "--name", "vm", "--timeout", "30s", "--", "true"]);
    assert_eq!(ended.code(), 125, "{ended}");
    machine.tool(["stop", "vm", "--timeout", TIMEOUT]).exits(0);
    machine.tool(["rm", "vm"]).exits(0);
    machine.is_clean();
}

fn a_killed_supervisor_loses_nothing(machine: &Machine) {
    machine.boot("vm");
    let supervisor = machine
        .processes()
        .into_iter()
        .find(|(_, name)| name.starts_with("host-tool"));
    let (pid, _) = supervisor.expect("a supervisor");
    tests::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
    assert_eq!(machine.exec("vm", "echo here"), "here\n");
    machine.end("vm");
    machine.is_clean();
}

fn a_health_check_in_a_machine(machine: &Machine) {
    let mut command = machine.restore_command(&machine.artifact(), "vm");
    command.args(["--health-cmd", "/init --version"]);
    command.args(["--health-interval", "100ms", "--health-timeout", "60s"]);
    tests::process::run(&mut command).exits(0);
    let health = || {
        let inspected = machine.tool(["inspect", "vm", "--json"]).exits(0).json();
        inspected["health"].clone()
    };
    let runs_until = |runs: u64| {
        let deadline = Instant::now() + tests::DEADLINE * 2;
        while health()["runs"].as_u64().unwrap() < runs {
            assert!(Instant::now() < deadline, "{}", health());
        }
    };
    runs_until(1);
    assert_eq!(health()["status"], "healthy");
    // A snapshot does not make the VM unhealthy, even when it disturbs a check.
    for number in 0..3 {
        machine.snapshot("vm", &format!("artifact-{number}"), &[]);
        let runs = health()["runs"].as_u64().unwrap();
        runs_until(runs + 1);
        assert_eq!(
            (&health()["status"], &health()["failures"]),
            (&"healthy".into(), &0.into())
        );
    }
    machine.end("vm");
    machine.is_clean();
}
