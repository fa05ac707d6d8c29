//! Ends of a session that begin on this side: its input or its terminal is lost, its output cannot
//! be written, or the user gives up.
//!
//! | What happens | The command gets | The client |
//! |---|---|---|
//! | standard input cannot be read | TERM, then KILL | waits for the end, then fails |
//! | standard output cannot be written | TERM | leaves |
//! | standard error cannot be written | nothing | waits for the end, then fails |
//! | the terminal is closed | HUP | leaves |
//! | a second signal | that signal, too | leaves |
//!
//! A client that leaves waits until the guest has confirmed the signal. A guest that does not get
//! it ends the command after its `keep_ms`.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use shared::message::Stream;
use shared::session_client::Fate;

use super::Driver;
use super::error::{ClientError, Loss};
use super::user::number_of;
use super::wait::poll_until;

/// How long the guest may take to confirm the last signal.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// How long the command may take to heed TERM. As long as the guest gives it after a time limit.
const TERM_GRACE: Duration = Duration::from_secs(5);

impl Driver<'_> {
    /// Standard input cannot be read any more. Its end would tell the command that it has all of
    /// it, so the guest does not hear of an end.
    pub(super) fn cut_input(&mut self, errno: Errno) {
        let at = self.input_len;
        log::info!("standard input was cut at byte {at}: {errno}; the command is told to end");
        self.stdin = None;
        let source = errno.into();
        self.loss = Some(Loss::Input { at, source });
        self.client.handle_signal(number_of(Signal::SIGTERM));
        self.kill_at = Some(Instant::now() + TERM_GRACE);
    }

    /// Ends a command that has not heeded TERM.
    pub(super) fn kill_if_due(&mut self) {
        if self.kill_at.is_some_and(|at| Instant::now() >= at) {
            self.kill_at = None;
            self.client.handle_signal(number_of(Signal::SIGKILL));
        }
    }

    /// The user's terminal was closed, and with it everything that connects the user to the
    /// command.
    pub(super) fn hang_up(&mut self) -> ClientError {
        self.leave_with(Signal::SIGHUP);
        ClientError::HungUp(self.client.known_fate())
    }

    /// Handles a failed call about the terminal.
    pub(super) fn terminal_failed(&mut self, error: io::Error) -> ClientError {
        match error.raw_os_error() {
            Some(libc::EIO) => self.hang_up(),
            _ => ClientError::Local(error),
        }
    }

    /// Handles the result of a write of output.
    pub(super) fn handed_on(
        &mut self,
        stream: Stream,
        result: io::Result<usize>,
    ) -> Result<(), ClientError> {
        let now = Instant::now();
        let error = match result {
            Ok(len) => {
                self.client.handle_consumed(stream, len, now);
                return Ok(());
            }
            Err(error) => error,
        };
        let outlet = &mut self.outlets[stream.index()];
        let has_no_reader = match error.raw_os_error() {
            Some(libc::EPIPE) => true,
            Some(libc::EIO) => outlet.is_terminal(),
            _ => false,
        };
        match stream {
            Stream::Stdout if has_no_reader && outlet.is_terminal() => Err(self.hang_up()),
            Stream::Stdout => {
                self.leave_with(Signal::SIGTERM);
                Err(ClientError::Output(error))
            }
            // The command runs on, as it would here.
            Stream::Stderr => {
                let len = outlet.discard();
                self.client.handle_consumed(stream, len, now);
                if !has_no_reader && self.loss.is_none() {
                    log::info!("cannot write to standard error: {error}");
                    self.loss = Some(Loss::Stderr(error));
                }
                Ok(())
            }
        }
    }

    /// Sends the command a last signal.
    fn leave_with(&mut self, signal: Signal) {
        if self.owns {
            self.client.handle_signal(number_of(signal));
            self.say_last_words();
        }
    }

    /// Waits until the guest has confirmed all signals, and discards the output that comes before.
    /// A connection that is closed earlier may take an unread signal along. A command that was
    /// requested must start first. One that was not must not start any more.
    pub(super) fn say_last_words(&mut self) {
        let until = Instant::now() + LAST_WORDS_MAX;
        while matches!(self.client.fate(), Fate::Unknown | Fate::Started)
            && !self.client.has_ended()
            && self.client.unconfirmed_signal_count() > 0
            && Instant::now() < until
        {
            if let Err(error) = self.converse(until) {
                log::debug!("{}: {error}", self.endpoint);
                return;
            }
        }
    }

    /// Writes and reads once, without the user's streams.
    fn converse(&mut self, until: Instant) -> io::Result<()> {
        let Some(connection) = &mut self.connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let lost = |error| io::Error::other(format!("{error}"));
        let bytes = self.client.poll_output();
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, !bytes.is_empty());
        poll_until(&mut [PollFd::new(connection.as_fd(), interest)], until)?;
        if !bytes.is_empty() {
            let len = connection.try_write(bytes).map_err(lost)?;
            self.client.handle_written(len);
        }
        let now = Instant::now();
        if let Some(bytes) = connection.try_read().map_err(lost)? {
            self.client.handle_bytes(bytes, now);
        }
        // Unread output stays in the guest's rings, because it is not acknowledged.
        while self.client.poll_event(now).is_some() {}
        Ok(())
    }
}
