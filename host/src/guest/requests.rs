//! The requests to a guest: one method for each, which returns the content of the answer.

use std::io;

use shared::exchange::Request;
use shared::id::{Generation, Token};
use shared::message::{
    AwaitCheckpoint, Cause, Checkpoint, Depth, Hooked, Hooks, Identity, Info, InheritedSessions,
    Message, Probed, Quiesce, Rebind, Rebound, Reopen, Sessions, SessionsRequest, Shutdown, Signal,
};

use super::address::Endpoint;
use super::answer::{Answer, AskError, AskErrorReason};
use super::driver::ask;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::deadline::Watch;
use crate::os::random;

/// A guest's address, and what ends the wait for its answers.
#[derive(Debug, Clone)]
pub(crate) struct Guest<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) watch: Watch<'a>,
    /// Whether a guest that is not there yet is waited for.
    pub(crate) is_awaited: bool,
}

/// Takes the content of a message of this kind.
macro_rules! only {
    ($kind:ident) => {
        |message| match message {
            Message::$kind(content) => Some(content),
            _ => None,
        }
    };
}

impl Guest<'_> {
    pub(crate) fn rebind(&self, rebind: Rebind) -> Result<Answer<Rebound>, AskError> {
        self.ask(Request::Rebind(rebind), only!(Rebound))
    }

    /// Has the guest prove that commands can run under `generation`.
    pub(crate) fn probe(
        &self,
        generation: Option<Generation>,
        depth: Depth,
    ) -> Result<Answer<Probed>, AskError> {
        self.ask(Request::Probe { generation, depth }, only!(Probed))
    }

    pub(crate) fn quiesce(&self, quiesce: Quiesce) -> Result<Answer<Token>, AskError> {
        self.ask(Request::Quiesce(quiesce), only!(Quiesced))
    }

    pub(crate) fn reopen(&self, token: Token) -> Result<(), AskError> {
        self.command(Request::Reopen(Reopen { token }))
    }

    pub(crate) fn hooks(&self, hooks: Hooks) -> Result<Answer<Hooked>, AskError> {
        self.ask(Request::Hooks(hooks), only!(Hooked))
    }

    /// Waits for a program at the checkpoint with this tag; `None` is any.
    pub(crate) fn await_checkpoint(&self, tag: Option<String>) -> Result<Checkpoint, AskError> {
        let request = Request::AwaitCheckpoint(AwaitCheckpoint { tag });
        Ok(self.ask(request, only!(Checkpoint))?.content)
    }

    pub(crate) fn info(&self) -> Result<Info, AskError> {
        Ok(self.ask(Request::Info, only!(Info))?.content)
    }

    /// Lists the sessions with higher numbers than `after`, or the first of them.
    pub(crate) fn sessions(&self, after: u64) -> Result<Sessions, AskError> {
        let request = Request::Sessions(SessionsRequest { after });
        Ok(self.ask(request, only!(Sessions))?.content)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), AskError> {
        self.command(Request::Signal(signal))
    }

    pub(crate) fn shutdown(&self, shutdown: Shutdown) -> Result<(), AskError> {
        self.command(Request::Shutdown(shutdown))
    }

    /// Sends a request whose answer is OK.
    fn command(&self, request: Request) -> Result<(), AskError> {
        self.ask(request, |message| {
            matches!(message, Message::Ok).then_some(())
        })
        .map(drop)
    }

    fn ask<T>(
        &self,
        request: Request,
        content: impl FnOnce(Message) -> Option<T>,
    ) -> Result<Answer<T>, AskError> {
        let answer = ask(&self.endpoint, request, &self.watch, self.is_awaited)?;
        let kind = answer.content.kind();
        match content(answer.content) {
            Some(content) => Ok(Answer {
                content,
                hello: answer.hello,
                attempts: answer.attempts,
                log: answer.log,
                connection: answer.connection,
            }),
            // An exchange ends only with the frame that completes its request.
            None => Err(AskError {
                endpoint: self.endpoint.to_string().into(),
                attempts: answer.attempts,
                log: answer.log.into(),
                reason: AskErrorReason::Local(io::Error::other(format!(
                    "the exchange ended with {kind}"
                ))),
                last: None,
            }),
        }
    }
}

/// A generation for a guest, and why it gets one.
#[derive(Debug, Clone)]
pub(crate) struct RebindPlan {
    /// The guest acts once on a generation, however often it gets REBIND.
    pub(crate) generation: Generation,
    /// The generation of the snapshot, or the one that the source had before.
    pub(crate) parent: Option<Generation>,
    pub(crate) cause: Cause,
    /// Host name, machine id and network, which tell a clone from its siblings.
    pub(crate) identity: Identity,
}

impl RebindPlan {
    pub(crate) fn new(
        cause: Cause,
        parent: Option<Generation>,
        identity: Identity,
    ) -> Result<Self, Failure> {
        let drawn = random::generation();
        Ok(Self {
            generation: drawn.or_fail(Exit::Internal, || "cannot draw a generation".to_owned())?,
            parent,
            cause,
            identity,
        })
    }

    /// The REBIND request, with fresh entropy.
    pub(crate) fn request(&self) -> Result<Rebind, Failure> {
        let entropy =
            random::bytes::<32>().or_fail(Exit::Internal, || "cannot draw entropy".to_owned())?;
        Ok(Rebind {
            generation: self.generation,
            cause: self.cause,
            parent: self.parent,
            // The driver fills in both for each attempt.
            wall_clock_ns: 0,
            attempt: 0,
            entropy: Some(entropy),
            identity: self.identity.clone(),
            sessions: InheritedSessions::Keep,
        })
    }
}
