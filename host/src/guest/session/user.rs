//! The user's side of a session: keys, signals, and the size of the terminal.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::read;
use shared::session_client::Fate;

use super::Driver;
use super::error::ClientError;
use crate::os::terminal::size_of_any;

/// The byte that Ctrl-C sends in raw mode.
const INTERRUPT_KEY: u8 = 3;

impl Driver<'_> {
    pub(super) fn read_input(&mut self) -> Result<(), ClientError> {
        let room = self.client.input_room().min(self.input.len());
        let (Some(stdin), true) = (self.stdin, room > 0) else {
            return Ok(());
        };
        match read(stdin, &mut self.input[..room]) {
            // A raw terminal has no other end, since Ctrl-D is a byte.
            Ok(0) if self.has_tty && self.is_input_terminal => return Err(self.hang_up()),
            Ok(0) => {
                self.stdin = None;
                self.client.handle_input_end();
            }
            Ok(len) => {
                let bytes = &self.input[..len];
                self.input_len += u64::try_from(len).unwrap_or(u64::MAX);
                self.client.handle_input(bytes);
                let is_interrupt = self.has_tty && bytes.contains(&INTERRUPT_KEY);
                if is_interrupt && !self.client.is_attached() {
                    return self.interrupt();
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(Errno::EIO) if self.is_input_terminal => return Err(self.hang_up()),
            Err(errno) => self.cut_input(errno),
        }
        Ok(())
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
                    let stopped = terminal.stop_job();
                    stopped.map_err(|error| self.terminal_failed(error))?;
                    self.resize();
                }
                (Signal::SIGCONT, Some(terminal)) => {
                    let set = terminal.set_again();
                    set.map_err(|error| self.terminal_failed(error))?;
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

    /// The first Ctrl-C is for the command. The second ends this program, too, whatever the command
    /// makes of it.
    pub(super) fn interrupt(&mut self) -> Result<(), ClientError> {
        if let Some(exited) = self.client.exited() {
            return Err(ClientError::Unread(exited.status.shell_code()));
        }
        let fate = self.client.known_fate();
        let has_command = matches!(fate, Some(Fate::Unknown | Fate::Started));
        if !has_command || self.is_interrupted {
            self.say_last_words();
            return Err(ClientError::Interrupted(fate));
        }
        self.is_interrupted = true;
        if !self.client.is_attached() {
            log::warn!("the guest cannot be reached now; another interrupt ends this program");
        }
        Ok(())
    }
}

pub(super) fn number_of(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(u8::MAX)
}
