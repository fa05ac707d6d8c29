//! The report's words: what the figures say, what they consist of, and what they mean elsewhere.
//! Every sentence with a figure in it is written from the record, and is left out where that lacks
//! the figure.

use crate::report::ratio;
use crate::results::Results;
use crate::svg::figure;

/// The VMMs, as cases have them behind their name.
pub(crate) const VMMS: [&str; 2] = ["firecracker", "qemu"];

/// KiB of a page.
const PAGE_KIB: f64 = 4.0;

/// What is no more than this is not worth a sentence: a VMM that has read all of the memory before.
const TOUCHED_KIB_MIN: f64 = 400.0;

/// The size of write that streams are quoted at.
const QUOTED_WRITE: f64 = 65_536.0;

/// Whether the virtual machines of the run were emulated.
pub(crate) fn is_emulated(results: &Results) -> bool {
    results
        .facts
        .get("lab")
        .is_some_and(|lab| lab == "emulated")
}

/// What the figures say, a line for each group.
pub(crate) fn summary(results: &Results) -> String {
    let mut lines: Vec<String> = VMMS
        .into_iter()
        .filter_map(|vmm| ready(results, vmm))
        .collect();
    lines.extend(exec(results));
    lines.extend(exec_over_vsock(results));
    lines.extend(streams(results));
    lines.extend(footprint(results));
    lines.extend(growth(results));
    lines.extend(VMMS.into_iter().filter_map(|vmm| clones(results, vmm)));
    list(lines)
}

/// What the figures consist of.
pub(crate) fn limits(results: &Results) -> String {
    let mut lines: Vec<String> = VMMS
        .into_iter()
        .filter_map(|vmm| ready_limit(results, vmm))
        .collect();
    lines.extend(VMMS.into_iter().filter_map(|vmm| cpu_limit(results, vmm)));
    lines.extend(exec_limit(results));
    lines.extend(crowd_limit(results));
    lines.extend(stream_limit(results));
    list(lines)
}

fn list(lines: Vec<String>) -> String {
    if lines.is_empty() {
        return "The run lacks the figures for this.\n".to_owned();
    }
    format!("- {}\n", lines.join("\n- "))
}

/// One figure of a case, at its median.
fn median(results: &Results, case: &str, subject: &str, x: Option<f64>) -> Option<f64> {
    Some(results.find(case, subject, x)?.p50)
}

/// One figure of a case that has a VMM behind its name.
fn of_vmm(results: &Results, case: &str, vmm: &str, subject: &str) -> Option<f64> {
    median(results, &format!("lab/{case}/{vmm}"), subject, None)
}

/// ", emulated" where figures of virtual machines are.
fn remark(results: &Results) -> &'static str {
    if is_emulated(results) {
        ", emulated"
    } else {
        ""
    }
}

fn ready(results: &Results, vmm: &str) -> Option<String> {
    let ready = of_vmm(results, "ready", vmm, "agent")?;
    let echo = of_vmm(results, "ready", vmm, "echo")?;
    let restore = of_vmm(results, "restore", vmm, "agent")?;
    Some(format!(
        "**Ready** ({vmm}{}): proven {} ms after the VMM has loaded the guest, {} what one echo \
         takes through a guest that can do nothing else. The whole `host-tool restore` takes {} \
         ms.",
        remark(results),
        figure(ready),
        ratio(ready, echo),
        figure(restore),
    ))
}

fn exec(results: &Results) -> Option<String> {
    let find = |subject| median(results, "exec/round_trip", subject, Some(1.0));
    let (agent, floor) = (find("agent")?, find("posix_spawn")?);
    Some(format!(
        "**Exec**: {} µs for a no-op over a Unix socket, {} the bare process. socat takes {}, the \
         QEMU guest agent {} as long as guest-agent.",
        figure(agent),
        ratio(agent, floor),
        ratio(find("socat")?, agent),
        ratio(find("qemu_ga")?, agent),
    ))
}

fn exec_over_vsock(results: &Results) -> Option<String> {
    let at = |vmm: &str, subject| {
        let case = format!("lab/exec/{vmm}");
        median(results, &case, subject, Some(1.0))
    };
    let of = |vmm: &str| -> Option<String> {
        let agent = at(vmm, "agent")?;
        let others = [("socat", "socat"), ("qemu_ga", "the QEMU guest agent")];
        let others = others.into_iter().filter_map(|(subject, label)| {
            Some(format!("{label} {}", ratio(at(vmm, subject)?, agent)))
        });
        let others: Vec<String> = others.collect();
        let ms = figure(agent / 1e3);
        Some(format!("{ms} ms on {vmm} ({} that)", others.join(", ")))
    };
    let parts: Vec<String> = VMMS.into_iter().filter_map(of).collect();
    (!parts.is_empty()).then(|| {
        format!(
            "**Exec over vsock**{}: {}.",
            remark(results),
            parts.join(", ")
        )
    })
}

fn streams(results: &Results) -> Option<String> {
    let find = |case, subject| median(results, case, subject, Some(QUOTED_WRITE));
    let (out, into) = (
        find("streams/stdout", "agent")?,
        find("streams/stdin", "agent")?,
    );
    Some(format!(
        "**Streams**: {} MiB/s of standard output and {} MiB/s of standard input in writes of 64 \
         KiB, {} and {} what socat moves.",
        figure(out),
        figure(into),
        ratio(out, find("streams/stdout", "socat")?),
        ratio(into, find("streams/stdin", "socat")?),
    ))
}

fn footprint(results: &Results) -> Option<String> {
    let find = |case: &str, subject| median(results, &format!("footprint/{case}"), subject, None);
    let mut text = format!(
        "**Footprint**: a file of {} KiB and {} KiB resident, {} KiB after many commands.",
        figure(find("file", "agent")?),
        figure(find("rss_idle", "agent")?),
        figure(find("rss_after", "agent")?),
    );
    let others = [
        ("dropbear", "dropbear"),
        ("qemu_ga", "the QEMU guest agent"),
        ("busybox_init", "busybox init"),
    ];
    for (subject, label) in others {
        if let Some(rss) = find("rss_idle", subject) {
            text.push_str(&format!(" Idle, {label} has {} KiB.", figure(rss)));
        }
    }
    Some(text)
}

fn growth(results: &Results) -> Option<String> {
    let find = |case, x| median(results, case, "agent", Some(x));
    let sessions = "growth/sessions_exec";
    let connections = "growth/connections_exec";
    Some(format!(
        "**Growth**: beside 500 running sessions a no-op takes {} what it takes beside none, \
         beside 500 open connections {}.",
        ratio(find(sessions, 500.0)?, find(sessions, 0.0)?),
        ratio(find(connections, 500.0)?, find(connections, 0.0)?),
    ))
}

fn clones(results: &Results, vmm: &str) -> Option<String> {
    let case = format!("lab/clones/{vmm}");
    let time = |x| median(results, &case, "agent", Some(x));
    let memory = format!("lab/clone_memory/{vmm}");
    let (one, many) = (time(1.0)?, time(16.0)?);
    Some(format!(
        "**Clones** ({vmm}{}): the last of 16 at once is ready after {} ms, {} as long as one \
         alone, and the VMM of each has {} KiB of memory, shared pages divided.",
        remark(results),
        figure(many),
        ratio(many, one),
        figure(median(results, &memory, "vmm", Some(16.0))?),
    ))
}

fn ready_limit(results: &Results, vmm: &str) -> Option<String> {
    let phase = |name| of_vmm(results, "phases", vmm, name);
    let echo = of_vmm(results, "ready", vmm, "echo")?;
    let mut text = format!(
        "**Ready** ({vmm}): {} ms are for REBIND and {} ms for the proof behind it, where an echo \
         over a raw connection takes {} ms.",
        figure(phase("rebind")?),
        figure(phase("probe")?),
        figure(echo),
    );
    let step = |name| of_vmm(results, "steps", vmm, name);
    let steps = ["connections", "listener", "clock", "entropy", "identity"];
    let steps: Option<Vec<f64>> = steps.into_iter().map(step).collect();
    if let (Some(steps), Some(exec)) = (steps, step("exec (probe)")) {
        let all: f64 = steps.iter().sum();
        text.push_str(&format!(
            " The guest's own steps are {} ms of the first, and the process that it starts, runs \
             and reaps is {} ms of the second.",
            figure(all / 1e3),
            figure(exec / 1e3),
        ));
        let ready = of_vmm(results, "ready", vmm, "agent")?;
        text.push_str(&format!(
            " An echo owes nothing of these. Without them it is {} of the echo, for two \
             connections one after the other.",
            ratio(ready - (all + exec) / 1e3, echo),
        ));
    }
    let touched = |subject| of_vmm(results, "memory_touched", vmm, subject);
    if let (Some(ours), Some(floor)) = (touched("agent"), touched("echo"))
        && ours >= TOUCHED_KIB_MIN
    {
        text.push_str(&format!(
            " Until READY the VMM gets {} pages more into its memory, with the echo guest {}: \
             where a restored guest finds its pages only as it touches them, each is a fault that \
             its host serves while it waits.",
            figure((ours / PAGE_KIB).round()),
            figure((floor / PAGE_KIB).round()),
        ));
    }
    Some(text)
}

fn cpu_limit(results: &Results, vmm: &str) -> Option<String> {
    let part = |name| of_vmm(results, "cpu_parts", vmm, name);
    let (tool, supervisor, machine) = (part("host_tool")?, part("supervisor")?, part("vmm")?);
    let restore = of_vmm(results, "restore", vmm, "agent")?;
    let mut text = format!(
        "**The whole restore** ({vmm}): of {} ms, {} ms are spent before the load is answered. \
         host-tool takes {} ms of CPU time, the supervisor {} ms, and the VMM with its guest {} \
         ms.",
        figure(restore),
        figure((restore - of_vmm(results, "ready", vmm, "agent")?).max(0.0)),
        figure(tool),
        figure(supervisor),
        figure(machine),
    );
    if let Some(calls) = of_vmm(results, "syscalls", vmm, "host_tool") {
        text.push_str(&format!(" host-tool makes {} system calls.", figure(calls)));
    }
    Some(text)
}
fn exec_limit(results: &Results) -> Option<String> {
    let find = |subject| results.find("exec/round_trip", subject, Some(1.0));
    let (agent, kept, floor) = (find("agent")?, find("agent_kept")?, find("posix_spawn")?);
    let share = floor.p50 / agent.p50 * 100.0;
    let mut text = format!(
        "**Exec.** Of the {} µs of a no-op, {} µs ({share:.0} %) are what the kernel takes to \
         make, run and reap the process. The rest, {} µs, is the agent, its client and the \
         socket between them; {} µs of it are for the connection, which a kept one does not \
         pay.",
        figure(agent.p50),
        figure(floor.p50),
        figure(agent.p50 - floor.p50),
        figure((agent.p50 - kept.p50).max(0.0)),
    );
    for (subject, name) in [("socat", "socat"), ("qemu_ga", "the QEMU guest agent")] {
        if let Some(other) = find(subject)
            && other.p50 < 2.0 * agent.p50
        {
            text.push_str(&format!(
                " Half of what {name} takes would be {} µs, {} of the bare process; on a kept \
                 connection the agent is ahead by {}.",
                figure(other.p50 / 2.0),
                ratio(other.p50 / 2.0, floor.p50),
                ratio(other.p50, kept.p50),
            ));
        }
    }
    Some(text)
}

fn crowd_limit(results: &Results) -> Option<String> {
    let find = |subject, x| results.find("exec/round_trip", subject, Some(x));
    let (one, crowd) = (find("agent", 1.0)?, find("agent", 100.0)?);
    let floor = find("posix_spawn", 100.0)?;
    let socat = find("socat", 100.0)
        .map(|socat| format!(", and those of socat {} ms", figure(socat.p50 / 1e3)))
        .unwrap_or_default();
    Some(format!(
        "**A crowd.** A hundred clients at once each wait {} ms, {} as long as one alone, where \
         the bare floor takes {} ms{socat}. The agent is one thread, and it starts one process \
         after the other, suspended until each has been executed.",
        figure(crowd.p50 / 1e3),
        ratio(crowd.p50, one.p50),
        figure(floor.p50 / 1e3),
    ))
}

fn stream_limit(results: &Results) -> Option<String> {
    let case = "streams/stdout";
    let x = Some(65_536.0);
    let (agent, socat) = (
        results.find(case, "agent", x)?,
        results.find(case, "socat", x)?,
    );
    let cpu = |subject| results.find("streams/stdout_cpu_server", subject, x);
    Some(format!(
        "**Streams.** In writes of 64 KiB the agent moves {} MiB/s and socat {}; a gibibyte \
         costs the guest's side {} ms of CPU time with the agent, {} ms with socat, and {} ms \
         with no relay at all. Frames, offsets and a ring that a client can come back to are \
         what is between the last two.",
        figure(agent.p50),
        figure(socat.p50),
        figure(cpu("agent")?.p50),
        figure(cpu("socat")?.p50),
        figure(cpu("socketpair")?.p50),
    ))
}

/// What to make of the figures elsewhere.
pub(crate) fn hardware(results: &Results) -> String {
    let has_lab = results.facts.contains_key("lab");
    let mut lines = Vec::new();
    if is_emulated(results) {
        lines.push(
            "The virtual machines of this run were emulated: QEMU's TCG is the processor, and \
             their guests' processor is virtual on that one. On hardware, expect their times to \
             be ten to fifty times shorter. The ratios stay where both sides do the same kind of \
             work, because both run the same VMM, kernel and machine; where one side has more \
             exits of the virtual machine or page faults than the other, hardware may weigh them \
             otherwise."
                .to_owned(),
        );
        lines.push(
            "What is no time is much the same on hardware: pages touched, system calls, memory \
             of a clone, sizes."
                .to_owned(),
        );
    } else if has_lab {
        lines.push(
            "The virtual machines of this run had hardware virtualization: their times are what \
             a user sees on such a machine."
                .to_owned(),
        );
    }
    if results
        .facts
        .get("this machine")
        .is_some_and(|kind| kind == "virtual")
    {
        lines.push(
            "The machine that everything else was measured on is itself a virtual one, with \
             neighbours: page faults and new processes, which most of an exec consists of, are \
             dearer there than on bare metal."
                .to_owned(),
        );
    }
    lines.push(
        "What was measured over a Unix socket is what the agent itself does. Over vsock each \
         message costs two exits of the virtual machine and an interrupt more, for the agent and \
         for every alternative alike."
            .to_owned(),
    );
    lines.push(
        "Absolute times vary by the machine and by what else it does. `host-tool bench` measures \
         a guest of yours where it runs: its commands, its streams, and its restores by phase."
            .to_owned(),
    );
    list(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Unit;

    #[test]
    fn a_sentence_lacks_nothing_or_is_left_out() {
        let mut results = Results::default();
        let lacks = "The run lacks the figures for this.\n";
        assert_eq!(summary(&results), lacks);
        assert_eq!(limits(&results), lacks);
        let ms = Unit::Milliseconds;
        results.add("lab/ready/qemu", "agent", None, ms, &[30.0]);
        results.add("lab/ready/qemu", "echo", None, ms, &[20.0]);
        assert_eq!(summary(&results), lacks);
        results.add("lab/restore/qemu", "agent", None, ms, &[100.0]);
        let text = summary(&results);
        assert!(text.starts_with("- **Ready** (qemu): proven 30"), "{text}");
        assert!(text.contains("1.50 × what one echo"), "{text}");
        let emulated = "emulated".to_owned();
        results.facts.insert("lab".to_owned(), emulated);
        let text = summary(&results);
        assert!(text.starts_with("- **Ready** (qemu, emulated)"), "{text}");
        assert!(hardware(&results).contains("TCG"));
    }
}
