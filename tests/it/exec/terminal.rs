//! Goal: `host-tool exec -it` is a terminal as ssh gives one: programs draw and resize, keys do
//! what they do there, and the caller's terminal is as it was, whatever happened. Method: a real
//! terminal (tmux), a shell in it that runs the built `host-tool`, and its screen.
//!
//! Texts that are waited for are typed with a pair of quotes in them, so that the echo of what was
//! typed is not taken for what came of it.

use nix::sys::signal::Signal;
use tests::agent::Agent;
use tests::process::signal;
use tests::program;
use tests::terminal::Terminal;

/// A terminal in whose shell `$HT ARGV` is `host-tool exec -it … -- ARGV`.
struct Place {
    // Dropped first: what runs in it lets go of the agent.
    terminal: Terminal,
    agent: Agent,
}

impl Place {
    /// None where there is no tmux, which is said.
    fn new(test: &str) -> Option<Self> {
        if !Terminal::is_available() {
            tests::skip(&format!("terminal {test}"), "tmux is not installed");
            return None;
        }
        let agent = Agent::start();
        let exec = format!(
            "{} exec --unix {}",
            program("host-tool").display(),
            agent.socket().display()
        );
        let folder = agent.folder().display().to_string();
        let variables = [("EXEC", &exec[..]), ("DIR", &folder[..])];
        let terminal = Terminal::start(agent.folder(), &variables);
        Some(Self { terminal, agent })
    }

    /// A shell in the guest, at its prompt.
    fn enter_guest(&self) {
        self.terminal.enters("$EXEC -it -e PS1='guest$ ' -- sh");
        self.terminal.prompts("guest$");
    }

    /// Runs a line in the outer shell between two looks at its terminal's settings.
    #[track_caller]
    fn with_settings(&self, line: &str, meanwhile: impl FnOnce(&Terminal)) -> String {
        let line = format!("stty -g >$DIR/before; {line}; echo co''de=$?; stty -g >$DIR/after");
        // What is waited for must not be there from before.
        self.terminal.enters("clear");
        self.terminal
            .waits_for("nothing but a prompt", |screen| screen.trim() == "outer$");
        self.terminal.enters(&format!("{line}; echo ov''er"));
        meanwhile(&self.terminal);
        let screen = self.terminal.shows("over");
        let settings = |name| std::fs::read_to_string(self.agent.folder().join(name)).unwrap();
        assert_eq!(settings("before"), settings("after"), "{line}: {screen}");
        screen
    }

    #[track_caller]
    fn ends_with(&self, line: &str, code: u8) {
        let screen = self.with_settings(line, |_| {});
        assert!(
            screen.contains(&format!("code={code}\n")),
            "{line}: {screen}"
        );
    }
}

#[test]
fn a_shell_in_the_guest_knows_its_size_and_hears_of_another() {
    let Some(place) = Place::new("size") else {
        return;
    };
    place.enter_guest();
    place.terminal.enters("stty size");
    place.terminal.shows("24 80");
    place.terminal.enters(
        "sh -c 'trap \"stty size; kill \\$!; exit 4\" WINCH; sleep 1000 & echo re\"\"ady; wait'",
    );
    place.terminal.shows("ready");
    place.terminal.resizes(100, 40);
    place.terminal.shows("40 100");
    place.terminal.prompts("guest$");
    place.terminal.enters("stty size");
    place
        .terminal
        .waits_for("it again", |screen| screen.matches("40 100").count() == 2);
}

#[test]
fn a_full_screen_program_draws_and_resizes() {
    let Some(place) = Place::new("full screen") else {
        return;
    };
    if tests::process::try_run("busybox", &["vi", "--help"]).is_none() {
        return tests::skip("terminal full screen", "busybox is not installed");
    }
    let text: String = (1..=10).map(|number| format!("row {number}\n")).collect();
    std::fs::write(place.agent.folder().join("text"), text).unwrap();
    place.terminal.enters("$EXEC -it -- busybox vi $DIR/text");
    // 24 rows: ten of the text, a row for the state, the rest are past its end.
    let is_drawn = |rows: usize| {
        move |screen: &str| {
            let past_end = screen.lines().filter(|line| line.starts_with('~')).count();
            screen.starts_with("row 1\n") && screen.contains("row 10\n") && past_end == rows - 11
        }
    };
    place.terminal.waits_for("the text", is_drawn(24));
    place.terminal.resizes(100, 40);
    place.terminal.waits_for("the text, taller", is_drawn(40));
    place.terminal.types("Gonew row");
    place.terminal.shows("new row");
    place.terminal.presses("Escape");
    // Out of insert mode: what follows an escape too fast is taken for one key with it.
    let is_command = |screen: &str| screen.lines().last().is_some_and(|it| it.starts_with('-'));
    place.terminal.waits_for("command mode", is_command);
    place.terminal.enters(":wq");
    place.terminal.prompts("outer$");
    let text = std::fs::read_to_string(place.agent.folder().join("text")).unwrap();
    assert!(text.ends_with("row 10\nnew row\n"), "{text}");
}

/// Starts `cat` in the guest's shell, which has said so when its echo is doubled.
#[track_caller]
fn start_cat(terminal: &Terminal, word: &str) {
    terminal.enters("cat");
    terminal.enters(word);
    terminal.waits_for("what cat read", |screen| screen.matches(word).count() == 2);
}

#[test]
fn control_c_interrupts_and_the_shell_goes_on() {
    let Some(place) = Place::new("Ctrl-C") else {
        return;
    };
    place.enter_guest();
    start_cat(&place.terminal, "abc");
    place.terminal.presses("C-c");
    place.terminal.prompts("guest$");
    place.terminal.enters("echo co''de=$?");
    place.terminal.shows("code=130");
    // At the prompt it does no more than begin a new line.
    place.terminal.types("half a line");
    place.terminal.shows("half a line");
    place.terminal.presses("C-c");
    place.terminal.prompts("guest$");
    place.terminal.enters("exit 5");
    place.terminal.prompts("outer$");
    place.terminal.enters("echo ou''ter=$?");
    place.terminal.shows("outer=5");
}

#[test]
fn control_z_stops_and_fg_goes_on() {
    let Some(place) = Place::new("Ctrl-Z") else {
        return;
    };
    place.enter_guest();
    start_cat(&place.terminal, "abc");
    place.terminal.presses("C-z");
    place.terminal.shows("Stopped");
    place.terminal.enters("echo he''re");
    place.terminal.shows("here");
    place.terminal.enters("fg");
    place.terminal.enters("def");
    place
        .terminal
        .waits_for("what cat read", |screen| screen.matches("def").count() == 2);
    place.terminal.presses("C-d");
    place.terminal.prompts("guest$");
    place.terminal.enters("echo co''de=$?");
    place.terminal.shows("code=0");
}

#[test]
fn control_backslash_quits() {
    let Some(place) = Place::new("Ctrl-\\") else {
        return;
    };
    place.enter_guest();
    place.terminal.enters("ulimit -c 0");
    start_cat(&place.terminal, "abc");
    place.terminal.presses("C-\\");
    place.terminal.prompts("guest$");
    place.terminal.enters("echo co''de=$?");
    place.terminal.shows("code=131");
}

#[test]
fn control_d_ends_the_shell() {
    let Some(place) = Place::new("Ctrl-D") else {
        return;
    };
    place.enter_guest();
    place.terminal.enters("sh -c 'exit 6'");
    place.terminal.prompts("guest$");
    place.terminal.presses("C-d");
    place.terminal.prompts("outer$");
    place.terminal.enters("echo ou''ter=$?");
    place.terminal.shows("outer=6");
}

#[test]
fn the_terminal_is_as_it_was_after_every_end() {
    let Some(place) = Place::new("settings") else {
        return;
    };
    place.ends_with("$EXEC -it -- sh -c 'exit 3'", 3);
    place.ends_with("$EXEC -it -- sh -c 'stty raw -echo; exit 4'", 4);
    place.ends_with("$EXEC -it -- sh -c 'kill -KILL $$'", 137);
    place.ends_with("$EXEC -it -- /no/such/program", 127);
    place.ends_with("$EXEC -it -- /etc/passwd", 126);
    place.ends_with("$EXEC -it -w /no/such/folder -- true", 126);
    place.ends_with("$EXEC -it -u no-such-user -- true", 126);
    place.ends_with("$EXEC -it --timeout 300ms -- cat", 124);
    place.ends_with("$EXEC -it --no-such-option -- true", 125);
    place.ends_with("$EXEC -it -- sh -c 'echo out; exit 3' | cat", 0);
}

#[test]
fn the_terminal_is_as_it_was_after_a_signal_to_the_client() {
    let Some(place) = Place::new("signals") else {
        return;
    };
    for which in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let line = "$EXEC -it -- sh -c 'echo rea\"\"dy; exec cat'";
        let screen = place.with_settings(line, |terminal| {
            terminal.shows("ready");
            signal(terminal.foreground(), which);
        });
        let code = format!("code={}\n", 128 + which as i32);
        assert!(screen.contains(&code), "{which}: {screen}");
    }
}

#[test]
fn the_terminal_is_as_it_was_after_the_guest_has_died() {
    let Some(place) = Place::new("death") else {
        return;
    };
    let line = "$EXEC -it --timeout 5s -- sh -c 'echo rea\"\"dy; exec cat'";
    let screen = place.with_settings(line, |terminal| {
        terminal.shows("ready");
        place.agent.signal(Signal::SIGKILL);
    });
    let is_unknown = screen.contains("code=125") || screen.contains("code=124");
    assert!(is_unknown && screen.contains("unknown"), "{screen}");
}

/// A client that was killed, and another one that takes over.
#[test]
fn attach_to_a_terminal_goes_on_where_it_was() {
    let Some(place) = Place::new("attach") else {
        return;
    };
    let id = "7".repeat(32);
    place.terminal.enters(&format!(
        "$EXEC -it --keep 60s --id {id} -e PS1='guest$ ' -- sh"
    ));
    place.terminal.prompts("guest$");
    place.terminal.enters("x=kept");
    place.terminal.prompts("guest$");
    // Killed without a chance to tidy up, the client leaves its command for a while.
    signal(place.terminal.foreground(), Signal::SIGKILL);
    place.terminal.shows("Killed");
    // Nobody has put the terminal back, in which Enter does not end a line now.
    place.terminal.types("stty sane; clear");
    place.terminal.presses("C-j");
    place
        .terminal
        .waits_for("nothing but a prompt", |screen| screen.trim() == "outer$");
    let attach = format!("${{EXEC%% exec*}} attach ${{EXEC#* exec}} {id}");
    place.terminal.enters(&attach);
    place.terminal.enters("echo $x''!");
    place.terminal.shows("kept!");
    place.terminal.enters("exit 8");
    place.terminal.prompts("outer$");
    place.terminal.enters("echo ou''ter=$?");
    place.terminal.shows("outer=8");
}
