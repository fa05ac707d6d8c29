//! A real terminal: tmux, whose screen is read after each change.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::DEADLINE;
use crate::process::{lines, run};

/// A window of 80 columns and 24 rows with a shell in it. It is closed when dropped.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
    /// tmux in control mode, which reports each piece of output.
    control: Child,
    events: mpsc::Receiver<String>,
}

impl Terminal {
    /// Whether tmux is installed.
    #[must_use]
    pub fn is_available() -> bool {
        let version = Command::new("tmux")
            .arg("-V")
            .stdout(Stdio::null())
            .status();
        version.is_ok_and(|status| status.success())
    }

    /// Starts a shell with these variables and the prompt `outer$`; its files lie in `folder`.
    pub fn start(folder: &Path, variables: &[(&str, &str)]) -> Self {
        let socket = folder.join("tmux.sock");
        let mut start = tmux(&socket);
        start.args("-f /dev/null new-session -d -x 80 -y 24".split(' '));
        // tmux runs a command of several arguments without a shell, which could replace the prompt.
        start.args(["env", "PS1=outer$ ", "sh"]);
        start.envs(variables.iter().copied());
        run(&mut start).exits(0);
        let mut settings = tmux(&socket);
        settings.args(["set-option", "-g", "window-size", "manual"]);
        run(&mut settings).exits(0);
        let mut control = tmux(&socket);
        control.args(["-C", "attach-session", "-t", "0"]);
        control.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut control = control.spawn().expect("tmux runs");
        let events = lines(control.stdout.take().expect("a piped stdout"));
        let terminal = Self {
            socket,
            control,
            events,
        };
        terminal.shows("outer$");
        terminal
    }

    pub fn types(&self, text: &str) {
        self.tell(&["send-keys", "-t", "0", "-l", "--", text]);
    }

    /// Presses a key, by its name in tmux: `Enter`, `C-c`.
    pub fn presses(&self, key: &str) {
        self.tell(&["send-keys", "-t", "0", key]);
    }

    /// Types a line and Enter.
    pub fn enters(&self, line: &str) {
        self.types(line);
        self.presses("Enter");
    }

    pub fn resizes(&self, cols: u16, rows: u16) {
        let (cols, rows) = (cols.to_string(), rows.to_string());
        self.tell(&["resize-window", "-t", "0", "-x", &cols, "-y", &rows]);
    }

    /// The lines on the screen.
    pub fn screen(&self) -> String {
        let mut capture = tmux(&self.socket);
        capture.args(["capture-pane", "-p", "-t", "0"]);
        run(&mut capture).exits(0).out()
    }

    /// Waits until `is_met` holds of the screen, and gives the screen.
    #[track_caller]
    pub fn waits_for(&self, what: &str, is_met: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let screen = self.screen();
            if is_met(&screen) {
                return screen;
            }
            let left = DEADLINE.saturating_sub(started.elapsed());
            // Events that came after the screen was read are queued.
            let event = self.events.recv_timeout(left);
            assert!(event.is_ok(), "the screen never shows {what}:\n{screen}");
        }
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    pub fn shows(&self, text: &str) -> String {
        self.waits_for(text, |screen| screen.contains(text))
    }

    /// Waits until the last line of the screen is this prompt and nothing else.
    #[track_caller]
    pub fn prompts(&self, prompt: &str) -> String {
        self.waits_for(prompt, |screen| {
            screen.trim_end().lines().last().map(str::trim_end) == Some(prompt)
        })
    }

    /// The foreground process of the shell in the window.
    pub fn foreground(&self) -> u32 {
        let mut display = tmux(&self.socket);
        display.args(["display-message", "-p", "-t", "0", "#{pane_pid}"]);
        let shell = run(&mut display).exits(0).out().trim().to_owned();
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(path).expect("the shell runs");
        let child = children.split_whitespace().next();
        child.and_then(|pid| pid.parse().ok()).expect("a child")
    }

    fn tell(&self, args: &[&str]) {
        run(tmux(&self.socket).args(args)).exits(0);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut capture = tmux(&self.socket);
            let screen = capture.args(["capture-pane", "-p", "-t", "0"]).output();
            let screen = screen.map(|output| output.stdout).unwrap_or_default();
            eprintln!("screen:\n{}", String::from_utf8_lossy(&screen));
        }
        drop(tmux(&self.socket).arg("kill-server").output());
        drop(self.control.kill());
        drop(self.control.wait());
    }
}

fn tmux(socket: &Path) -> Command {
    let mut tmux = Command::new("tmux");
    tmux.arg("-S").arg(socket);
    tmux.env("TERM", "xterm").env_remove("TMUX");
    tmux
}
