//! The user's side of a session: keys, signals, and the size of the terminal.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::read;
use shared::session_client::Fate;

use super::Driver;
use super::error::ClientError;
use crate::os::terminal::size_of_any;

/// How long the guest may take to confirm a signal before it counts as unreachable.
const CONFIRM_MAX: Duration = Duration::from_secs(2);

/// The byte that Ctrl-C sends in raw mode.
const INTERRUPT_KEY: u8 = 3;

impl Driver<'_> {
    pub(super) fn read_input(&mut self) -> Result<(), ClientError> {
        let room = self.client.input_room().min(self.input.len());
        let (Some(stdin), true) = (self.stdin, room > 0) else {
            return Ok(());
        };
        match read(stdin, &mut self.input[..room]) {
            Ok(0) => self.end_input(),
            Ok(len) => {
                let bytes = &self.input[..len];
                self.client.handle_input(bytes);
                let is_interrupt = self.has_tty && bytes.contains(&INTERRUPT_KEY);
                if is_interrupt && !self.client.is_attached() {
                    return self.interrupt();
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => {
                log::warn!("cannot read standard input, which counts as its end: {errno}");
                self.end_input();
            }
        }
        Ok(())
    }

    pub(super) fn end_input(&mut self) {
        self.stdin = None;
        self.client.handle_input_end();
    }

    pub(super) fn read_signals(&mut self) -> Result<(), ClientError> {
        while let Some(signals) = self.signals {
            let Some(signal) = signals.next().map_err(ClientError::Local)? else {
                break;
            };
            log::debug!("{signal}");
            match (signal, &mut self.terminal) {
                (Signal::SIGWINCH, _) => self.resize(),
                (Signal::SIGTSTP, Some(terminal)) => {
                    terminal.stop_job().map_err(ClientError::Local)?;
                    self.resize();
                }
                (Signal::SIGCONT, Some(terminal)) => {
                    terminal.set_again().map_err(ClientError::Local)?;
                    self.resize();
                }
                (Signal::SIGTSTP | Signal::SIGCONT, None) => {}
                (signal, _) => {
                    self.client.handle_signal(number_of(signal));
                    if !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2) {
                        self.interrupt()?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn resize(&mut self) {
        let size = match &self.terminal {
            Some(terminal) => terminal.size(),
            None => size_of_any(&[self.outlets[0].as_fd(), self.outlets[1].as_fd()]),
        };
        if let Some(size) = size.filter(|_| self.has_tty) {
            self.client.handle_resize(size);
        }
    }

    /// First Ctrl-C: forwarded to the guest. Second one while the guest is unreachable: this
    /// program ends.
    pub(super) fn interrupt(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        let fate = self.client.fate();
        let is_reached = self.client.is_attached() && self.client.unconfirmed_signal_count() <= 1;
        let is_again = self.interrupted_at.is_some_and(|at| {
            !self.client.is_attached() || now.saturating_duration_since(at) >= CONFIRM_MAX
        });
        if fate == Fate::NotRun || (is_again && !is_reached) {
            return Err(ClientError::Interrupted(fate));
        }
        if is_reached || self.interrupted_at.is_none() {
            self.interrupted_at = Some(now);
        }
        if !self.client.is_attached() {
            log::warn!("the guest cannot be reached now; another interrupt ends this program");
        }
        Ok(())
    }
}

pub(super) fn number_of(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(u8::MAX)
}
