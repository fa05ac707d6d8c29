//! Connections to the metadata service: one for each question, never waited for.

use std::io::{self, Read, Write};

use log::debug;
use mio::Interest;
use mio::net::TcpStream;

use super::{Shell, Source, Turn};

/// An open question.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    /// The part of the question that has not been written.
    unsent: Vec<u8>,
}

impl Shell {
    /// Connects. The question is sent once the connection is there.
    pub(super) fn ask_mmds(&mut self, question: String, turn: &mut Turn<'_>) {
        self.close_mmds();
        let Some(address) = self.options.mmds else {
            return;
        };
        let opened = TcpStream::connect(address.into()).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let token = Source::Mmds.token();
            self.registry.register(&mut stream, token, interest)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                let unsent = question.into_bytes();
                self.mmds = Some(Link { stream, unsent });
            }
            Err(err) => self.fail_mmds(&err, turn),
        }
    }

    pub(super) fn close_mmds(&mut self) {
        if let Some(mut link) = self.mmds.take() {
            let _ = self.registry.deregister(&mut link.stream);
        }
    }

    fn fail_mmds(&mut self, err: &io::Error, turn: &mut Turn<'_>) {
        debug!("metadata service: {err}");
        self.close_mmds();
        turn.agent.handle_mmds_failed(turn.now);
    }

    /// Writes and reads until the socket blocks or the core closes it. The core takes a few
    /// kilobytes, so an endless answer cannot starve other sources.
    pub(super) fn drain_mmds(&mut self, turn: &mut Turn<'_>) {
        while let Some(link) = &mut self.mmds {
            // A connection that is not established yet takes nothing; one that failed returns its
            // error here.
            let moved = if link.unsent.is_empty() {
                link.stream.read(&mut self.scratch)
            } else {
                link.stream.write(&link.unsent)
            };
            match moved {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => self.fail_mmds(&err, turn),
                // It was closed before the answer was complete.
                Ok(0) => self.fail_mmds(&io::ErrorKind::UnexpectedEof.into(), turn),
                Ok(len) if !link.unsent.is_empty() => drop(link.unsent.drain(..len)),
                Ok(len) => turn.agent.handle_mmds_bytes(&self.scratch[..len], turn.now),
            }
            self.drain_actions(turn);
        }
    }
}
