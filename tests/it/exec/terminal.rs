//! Goal: `host-tool exec -it` is a terminal as ssh gives one: programs draw and resize, keys have
//! their usual effect, and the caller's terminal has its old settings after any end. Method: a real
//! terminal (tmux), a shell in it that runs the built `host-tool`, and its screen.
//!
//! Texts that a test waits for are typed with a pair of quotes in the middle, so that the echo of
//! the typed line does not match them.

use nix::sys::signal::Signal;
use tests::agent::Agent;
use tests::process::signal;
use tests::program;
use tests::terminal::Terminal;

/// A terminal whose shell has `host-tool exec` and its target in `$EXEC`.
struct Fixture {
    // Dropped before the agent, which its programs use.
    terminal: Terminal,
    agent: Agent,
}

impl Fixture {
    /// `None`, reported as skipped, without tmux.
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

    /// Starts a shell in the guest and waits for its prompt.
    fn enter_guest(&self) {
        self.terminal.enters("$EXEC -it -e PS1='guest$ ' -- sh");
        self.terminal.prompts("guest$");
    }

    /// Runs a line in the outer shell, and compares the terminal's settings before and after it.
    #[track_caller]
    fn with_settings(&self, line: &str, meanwhile: impl FnOnce(&Terminal)) -> String {
        let line = format!("stty -g >$DIR/before; {line}; echo co''de=$?; stty -g >$DIR/after");
        // An older match must not be on the screen.
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
    let Some(fixture) = Fixture::new("size") else {
        return;
    };
    fixture.enter_guest();
    fixture.terminal.enters("stty size");
    fixture.terminal.shows("24 80");
    fixture.terminal.enters(
        "sh -c 'trap \"stty size; kill \\$!; exit 4\" WINCH; sleep 1000 & echo re\"\"ady; wait'",
    );
    fixture.terminal.shows("ready");
    fixture.terminal.resizes(100, 40);
    fixture.terminal.shows("40 100");
    fixture.terminal.prompts("guest$");
    fixture.terminal.enters("stty size");
    fixture
        .terminal
        .waits_for("it again", |screen| screen.matches("40 100").count() == 2);
}

#[test]
fn a_full_screen_program_draws_and_resizes() {
    let Some(fixture) = Fixture::new("full screen") else {
        return;
    };
    if tests::process::try_run("busybox", &["vi", "--help"]).is_none() {
        return tests::skip("terminal full screen", "busybox is not installed");
    }
    let text: String = (1..=10).map(|number| format!("row {number}\n")).collect();
    std::fs::write(fixture.agent.folder().join("text"), text).unwrap();
    fixture.terminal.enters("$EXEC -it -- busybox vi $DIR/text");
    // The rows of `vi`: ten of the text, one for its state, the others are past the end of the
    // text.
    let is_drawn = |rows: usize| {
        move |screen: &str| {
            let past_end = screen.lines().filter(|line| line.starts_with('~')).count();
            screen.starts_with("row 1\n") && screen.contains("row 10\n") && past_end == rows - 11
        }
    };
    fixture.terminal.waits_for("the text", is_drawn(24));
    fixture.terminal.resizes(100, 40);
    fixture.terminal.waits_for("the text, taller", is_drawn(40));
    fixture.terminal.types("Gonew row");
    fixture.terminal.shows("new row");
    fixture.terminal.presses("Escape");
    // Leaves insert mode first: vi takes an escape and a key that follows at once for one key.
    let is_command = |screen: &str| screen.lines().last().is_some_and(|it| it.starts_with('-'));
    fixture.terminal.waits_for("command mode", is_command);
    fixture.terminal.enters(":wq");
    fixture.terminal.prompts("outer$");
    let text = std::fs::read_to_string(fixture.agent.folder().join("text")).unwrap();
    assert!(text.ends_with("row 10\nnew row\n"), "{text}");
}

/// Starts `cat` in the guest's shell, and waits until it has printed what was typed.
#[track_caller]
fn start_cat(terminal: &Terminal, word: &str) {
    terminal.enters("cat");
    terminal.enters(word);
    terminal.waits_for("what cat read", |screen| screen.matches(word).count() == 2);
}

#[test]
fn control_c_interrupts_and_the_shell_goes_on() {
    let Some(fixture) = Fixture::new("Ctrl-C") else {
        return;
    };
    fixture.enter_guest();
    start_cat(&fixture.terminal, "abc");
    fixture.terminal.presses("C-c");
    fixture.terminal.prompts("guest$");
    fixture.terminal.enters("echo co''de=$?");
    fixture.terminal.shows("code=130");
    // At the prompt, Ctrl-C only begins a new line.
    fixture.terminal.types("half a line");
    fixture.terminal.shows("half a line");
    fixture.terminal.presses("C-c");
    fixture.terminal.prompts("guest$");
    fixture.terminal.enters("exit 5");
    fixture.terminal.prompts("outer$");
    fixture.terminal.enters("echo ou''ter=$?");
    fixture.terminal.shows("outer=5");
}

#[test]
fn control_z_stops_and_fg_goes_on() {
    let Some(fixture) = Fixture::new("Ctrl-Z") else {
        return;
    };
    fixture.enter_guest();
    start_cat(&fixture.terminal, "abc");
    fixture.terminal.presses("C-z");
    fixture.terminal.shows("Stopped");
    fixture.terminal.enters("echo he''re");
    fixture.terminal.shows("here");
    fixture.terminal.enters("fg");
    fixture.terminal.enters("def");
    fixture
        .terminal
        .waits_for("what cat read", |screen| screen.matches("def").count() == 2);
    fixture.terminal.presses("C-d");
    fixture.terminal.prompts("guest$");
    fixture.terminal.enters("echo co''de=$?");
    fixture.terminal.shows("code=0");
}

#[test]
fn control_backslash_quits() {
    let Some(fixture) = Fixture::new("Ctrl-\\") else {
        return;
    };
    fixture.enter_guest();
    fixture.terminal.enters("ulimit -c 0");
    start_cat(&fixture.terminal, "abc");
    fixture.terminal.presses("C-\\");
    fixture.terminal.prompts("guest$");
    fixture.terminal.enters("echo co''de=$?");
    fixture.terminal.shows("code=131");
}

#[test]
fn control_d_ends_the_shell() {
    let Some(fixture) = Fixture::new("Ctrl-D") else {
        return;
    };
    fixture.enter_guest();
    fixture.terminal.enters("sh -c 'exit 6'");
    fixture.terminal.prompts("guest$");
    fixture.terminal.presses("C-d");
    fixture.terminal.prompts("outer$");
    fixture.terminal.enters("echo ou''ter=$?");
    fixture.terminal.shows("outer=6");
}

#[test]
fn the_terminal_is_as_it_was_after_every_end() {
    let Some(fixture) = Fixture::new("settings") else {
        return;
    };
    fixture.ends_with("$EXEC -it -- sh -c 'exit 3'", 3);
    fixture.ends_with("$EXEC -it -- sh -c 'stty raw -echo; exit 4'", 4);
    fixture.ends_with("$EXEC -it -- sh -c 'kill -KILL $$'", 137);
    fixture.ends_with("$EXEC -it -- /no/such/program", 127);
    fixture.ends_with("$EXEC -it -- /etc/passwd", 126);
    fixture.ends_with("$EXEC -it -w /no/such/folder -- true", 126);
    fixture.ends_with("$EXEC -it -u no-such-user -- true", 126);
    fixture.ends_with("$EXEC -it --timeout 300ms -- cat", 124);
    fixture.ends_with("$EXEC -it --no-such-option -- true", 125);
    fixture.ends_with("$EXEC -it -- sh -c 'echo out; exit 3' | cat", 0);
}

#[test]
fn the_terminal_is_as_it_was_after_a_signal_to_the_client() {
    let Some(fixture) = Fixture::new("signals") else {
        return;
    };
    for which in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let line = "$EXEC -it -- sh -c 'echo rea\"\"dy; exec cat'";
        let screen = fixture.with_settings(line, |terminal| {
            terminal.shows("ready");
            signal(terminal.foreground(), which);
        });
        let code = format!("code={}\n", 128 + which as i32);
        assert!(screen.contains(&code), "{which}: {screen}");
    }
}

#[test]
fn the_terminal_is_as_it_was_after_the_guest_has_died() {
    let Some(fixture) = Fixture::new("death") else {
        return;
    };
    let line = "$EXEC -it --timeout 5s -- sh -c 'echo rea\"\"dy; exec cat'";
    let screen = fixture.with_settings(line, |terminal| {
        terminal.shows("ready");
        fixture.agent.signal(Signal::SIGKILL);
    });
    let is_unknown = screen.contains("code=125") || screen.contains("code=124");
    assert!(is_unknown && screen.contains("unknown"), "{screen}");
}

/// A client is killed, and another one takes the session over.
#[test]
fn attach_to_a_terminal_goes_on_where_it_was() {
    let Some(fixture) = Fixture::new("attach") else {
        return;
    };
    let id = "7".repeat(32);
    fixture.terminal.enters(&format!(
        "$EXEC -it --keep 60s --id {id} -e PS1='guest$ ' -- sh"
    ));
    fixture.terminal.prompts("guest$");
    fixture.terminal.enters("x=kept");
    fixture.terminal.prompts("guest$");
    // A client that is killed cannot end its command, which is kept for a while.
    signal(fixture.terminal.foreground(), Signal::SIGKILL);
    fixture.terminal.shows("Killed");
    // The killed client has left the terminal raw, so that Enter does not end a line.
    fixture.terminal.types("stty sane; clear");
    fixture.terminal.presses("C-j");
    fixture
        .terminal
        .waits_for("nothing but a prompt", |screen| screen.trim() == "outer$");
    let attach = format!("${{EXEC%% exec*}} attach ${{EXEC#* exec}} {id}");
    fixture.terminal.enters(&attach);
    fixture.terminal.enters("echo $x''!");
    fixture.terminal.shows("kept!");
    fixture.terminal.enters("exit 8");
    fixture.terminal.prompts("outer$");
    fixture.terminal.enters("echo ou''ter=$?");
    fixture.terminal.shows("outer=8");
}
