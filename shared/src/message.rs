//! Typed payloads. Parsing accepts a payload as a whole or refuses it. Every [`Message`] can be
//! encoded, and parsing its encoding returns the same value.

mod checkpoint;
mod control;
mod error;
mod exec;
mod exited;
mod handshake;
mod hello;
mod hooks;
mod keyword;
mod network;
mod session;
mod stream;

pub use checkpoint::{
    AwaitCheckpoint, Checkpoint, CheckpointRequest, CheckpointVerdict, GenerationRequest, Verdict,
    is_tag,
};
pub use control::{
    Busy, Fail, FailCode, Info, Ping, Policy, PowerAction, Quiesce, Reopen, Sever, SeverReason,
    Shutdown,
};
pub use error::PayloadError;
pub use exec::{ByteString, Exec, ExecLimit, Origin, Started};
pub use exited::{ExitStatus, Exited, Fault, FaultPart, ResourceUsage};
pub use handshake::{
    Cause, Depth, Identity, InheritedSessions, Probe, Probed, Progress, Rebind, Rebound, Step,
    StepName, StepResult,
};
pub use hello::{Hello, Role};
pub use hooks::{HookResult, HookStage, Hooked, Hooks};
pub use keyword::UnknownKeyword;
pub use network::{InterfaceAddress, MacAddress, Network, ParseAddressError};
pub use session::{
    Attach, AttachMode, ExitAck, SessionInfo, SessionRef, SessionState, Sessions, SessionsRequest,
    Signal, WORKLOAD,
};
pub use stream::{Ack, Chunk, Gap, OutputPolicy, StdinEof, Stream, TtySize, Window};

use crate::frame::{Frame, FrameKind, encode_with};
use crate::id::{Generation, Token};
use crate::json::{JsonError, Object, ToJson, object};

/// One frame with its parsed payload. Each variant says who sends it: the host, the guest, either
/// of them, or a program in the guest (local).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message {
    /// Either: the first frame, with the versions it speaks.
    Hello(Hello),
    /// Either: refuses a request, or ends the connection after a protocol error.
    Fail(Fail),
    /// Either: asks for a PONG.
    Ping(Ping),
    /// Either: answers PING.
    Pong(Ping),
    /// Guest: accepted REOPEN, SIGNAL or SHUTDOWN.
    Ok,
    /// Host: asks the guest to become usable under a new generation.
    Rebind(Rebind),
    /// Guest: a step of REBIND or PROBE has begun.
    Progress(Progress),
    /// Guest: completes REBIND.
    Rebound(Rebound),
    /// Host: asks for proof that commands can run.
    Probe(Probe),
    /// Guest: completes PROBE with the proof.
    Probed(Probed),
    /// Host: asks the guest to be silent for a snapshot.
    Quiesce(Quiesce),
    /// Guest: QUIESCE waits for these sessions.
    Busy(Busy),
    /// Guest: completes QUIESCE with its token.
    Quiesced(Token),
    /// Host: takes a QUIESCE back.
    Reopen(Reopen),
    /// Guest: is about to cut this connection.
    Sever(Sever),
    /// Host: runs a command.
    Exec(Exec),
    /// Guest: the command of EXEC runs.
    Started(Started),
    /// Guest: bytes of standard output.
    Stdout(Chunk),
    /// Guest: bytes of standard error.
    Stderr(Chunk),
    /// Guest: how the command ended.
    Exited(Exited),
    /// Host: attaches to a session.
    Attach(Attach),
    /// Guest: this connection is attached.
    Attached(Started),
    /// Host: consumed output.
    Ack(Ack),
    /// Guest: dropped output.
    Gap(Gap),
    /// Host: bytes of standard input.
    Stdin(Chunk),
    /// Host: the end of standard input.
    StdinEof(StdinEof),
    /// Guest: credit for standard input.
    Window(Window),
    /// Host: sends a signal to a session.
    Signal(Signal),
    /// Host: the terminal's new size.
    Resize(TtySize),
    /// Host: has received EXITED.
    ExitAck(ExitAck),
    /// Host: asks for the list of sessions.
    SessionsRequest(SessionsRequest),
    /// Guest: a part of the list of sessions.
    Sessions(Sessions),
    /// Host: asks for the agent's figures.
    InfoRequest,
    /// Guest: the agent's figures.
    Info(Info),
    /// Host: powers the guest off or reboots it.
    Shutdown(Shutdown),
    /// Host: waits for a program at a checkpoint.
    AwaitCheckpoint(AwaitCheckpoint),
    /// Local: waits at a checkpoint for a snapshot.
    CheckpointRequest(CheckpointRequest),
    /// Guest, to the host: a program waits at a checkpoint.
    Checkpoint(Checkpoint),
    /// Guest, to the program: its wait at the checkpoint has ended.
    Verdict(CheckpointVerdict),
    /// Local: asks for the next generation.
    GenerationRequest(GenerationRequest),
    /// Guest, to the program: the new generation.
    Generation(Generation),
    /// Host: runs the image's hooks.
    Hooks(Hooks),
    /// Guest: how the hooks ended.
    Hooked(Hooked),
}

impl Message {
    /// Reads the payload of a frame that `sender` sent.
    ///
    /// # Errors
    ///
    /// When the payload is invalid for its kind, or `sender` never sends this kind.
    pub fn parse(frame: Frame<'_>, sender: Role) -> Result<Self, PayloadError> {
        match sender {
            Role::Host => Self::from_host(frame),
            Role::Guest => Self::from_guest(frame),
            Role::Local => Self::from_local(frame),
        }
    }

    /// [`parse`](Self::parse) for a frame that a host sent. Each sender has a function of its own,
    /// so that the agent contains no code for frames that it never receives.
    pub fn from_host(frame: Frame<'_>) -> Result<Self, PayloadError> {
        match frame.kind {
            FrameKind::Rebind => read(frame, Rebind::from_object).map(Self::Rebind),
            FrameKind::Probe => read(frame, Probe::from_object).map(Self::Probe),
            FrameKind::Quiesce => read(frame, Quiesce::from_object).map(Self::Quiesce),
            FrameKind::Reopen => read(frame, Reopen::from_object).map(Self::Reopen),
            FrameKind::Exec => read(frame, Exec::from_object).map(Self::Exec),
            FrameKind::Attach => read(frame, Attach::from_object).map(Self::Attach),
            FrameKind::Ack => read(frame, Ack::from_object).map(Self::Ack),
            FrameKind::Stdin => Chunk::read(frame).map(Self::Stdin),
            FrameKind::StdinEof => read(frame, StdinEof::from_object).map(Self::StdinEof),
            FrameKind::Signal => read(frame, Signal::from_object).map(Self::Signal),
            FrameKind::Resize => read(frame, TtySize::from_object).map(Self::Resize),
            FrameKind::ExitAck => read(frame, ExitAck::from_object).map(Self::ExitAck),
            FrameKind::Sessions => {
                read(frame, SessionsRequest::from_object).map(Self::SessionsRequest)
            }
            FrameKind::Info => read(frame, |_| Ok(Self::InfoRequest)),
            FrameKind::Shutdown => read(frame, Shutdown::from_object).map(Self::Shutdown),
            FrameKind::AwaitCheckpoint => {
                read(frame, AwaitCheckpoint::from_object).map(Self::AwaitCheckpoint)
            }
            FrameKind::Hooks => read(frame, Hooks::from_object).map(Self::Hooks),
            _ => Self::from_any(frame),
        }
    }

    /// [`parse`](Self::parse) for a frame that a guest sent.
    pub fn from_guest(frame: Frame<'_>) -> Result<Self, PayloadError> {
        match frame.kind {
            FrameKind::Ok => read(frame, |_| Ok(Self::Ok)),
            FrameKind::Progress => read(frame, Progress::from_object).map(Self::Progress),
            FrameKind::Rebound => read(frame, Rebound::from_object).map(Self::Rebound),
            FrameKind::Probed => read(frame, Probed::from_object).map(Self::Probed),
            FrameKind::Busy => read(frame, Busy::from_object).map(Self::Busy),
            FrameKind::Quiesced => read(frame, control::read_token).map(Self::Quiesced),
            FrameKind::Started => read(frame, Started::from_object).map(Self::Started),
            FrameKind::Stdout => Chunk::read(frame).map(Self::Stdout),
            FrameKind::Stderr => Chunk::read(frame).map(Self::Stderr),
            FrameKind::Exited => read(frame, Exited::from_object).map(Self::Exited),
            FrameKind::Attached => read(frame, Started::from_object).map(Self::Attached),
            FrameKind::Gap => read(frame, Gap::from_object).map(Self::Gap),
            FrameKind::Window => read(frame, Window::from_object).map(Self::Window),
            FrameKind::Sessions => read(frame, Sessions::from_object).map(Self::Sessions),
            FrameKind::Info => read(frame, Info::from_object).map(Self::Info),
            FrameKind::Checkpoint => read(frame, Checkpoint::from_object).map(Self::Checkpoint),
            FrameKind::Hooked => read(frame, Hooked::from_object).map(Self::Hooked),
            _ => Self::from_guest_to_local(frame),
        }
    }

    /// [`parse`](Self::parse) for a frame that a program in the guest sent to its agent.
    pub fn from_local(frame: Frame<'_>) -> Result<Self, PayloadError> {
        match frame.kind {
            FrameKind::Checkpoint => {
                read(frame, CheckpointRequest::from_object).map(Self::CheckpointRequest)
            }
            FrameKind::Generation => {
                read(frame, GenerationRequest::from_object).map(Self::GenerationRequest)
            }
            _ => Self::from_any(frame),
        }
    }

    /// [`parse`](Self::parse) for a frame that the agent sent to a program in the guest.
    /// Refuses frames that only hosts receive.
    pub fn from_guest_to_local(frame: Frame<'_>) -> Result<Self, PayloadError> {
        match frame.kind {
            FrameKind::Verdict => read(frame, CheckpointVerdict::from_object).map(Self::Verdict),
            FrameKind::Generation => {
                read(frame, checkpoint::read_new_generation).map(Self::Generation)
            }
            FrameKind::Sever => read(frame, Sever::from_object).map(Self::Sever),
            _ => Self::from_any(frame),
        }
    }

    /// Frames that every side may send.
    fn from_any(frame: Frame<'_>) -> Result<Self, PayloadError> {
        match frame.kind {
            FrameKind::Hello => read(frame, Hello::from_object).map(Self::Hello),
            FrameKind::Fail => read(frame, Fail::from_object).map(Self::Fail),
            FrameKind::Ping => read(frame, Ping::from_object).map(Self::Ping),
            FrameKind::Pong => read(frame, Ping::from_object).map(Self::Pong),
            kind => Err(PayloadError::WrongDirection { kind }),
        }
    }

    /// Appends the message as one frame.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        if let Self::Stdout(chunk) | Self::Stderr(chunk) | Self::Stdin(chunk) = self {
            chunk.write(self.kind(), out);
        } else {
            encode_with(out, self.kind(), |out| self.write_payload(out));
        }
    }

    /// The message as one frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// The kind of frame that carries this message.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::Fail(_) => FrameKind::Fail,
            Self::Ping(_) => FrameKind::Ping,
            Self::Pong(_) => FrameKind::Pong,
            Self::Ok => FrameKind::Ok,
            Self::Rebind(_) => FrameKind::Rebind,
            Self::Progress(_) => FrameKind::Progress,
            Self::Rebound(_) => FrameKind::Rebound,
            Self::Probe(_) => FrameKind::Probe,
            Self::Probed(_) => FrameKind::Probed,
            Self::Quiesce(_) => FrameKind::Quiesce,
            Self::Busy(_) => FrameKind::Busy,
            Self::Quiesced(_) => FrameKind::Quiesced,
            Self::Reopen(_) => FrameKind::Reopen,
            Self::Sever(_) => FrameKind::Sever,
            Self::Exec(_) => FrameKind::Exec,
            Self::Started(_) => FrameKind::Started,
            Self::Stdout(_) => FrameKind::Stdout,
            Self::Stderr(_) => FrameKind::Stderr,
            Self::Exited(_) => FrameKind::Exited,
            Self::Attach(_) => FrameKind::Attach,
            Self::Attached(_) => FrameKind::Attached,
            Self::Ack(_) => FrameKind::Ack,
            Self::Gap(_) => FrameKind::Gap,
            Self::Stdin(_) => FrameKind::Stdin,
            Self::StdinEof(_) => FrameKind::StdinEof,
            Self::Window(_) => FrameKind::Window,
            Self::Signal(_) => FrameKind::Signal,
            Self::Resize(_) => FrameKind::Resize,
            Self::ExitAck(_) => FrameKind::ExitAck,
            Self::SessionsRequest(_) | Self::Sessions(_) => FrameKind::Sessions,
            Self::InfoRequest | Self::Info(_) => FrameKind::Info,
            Self::Shutdown(_) => FrameKind::Shutdown,
            Self::AwaitCheckpoint(_) => FrameKind::AwaitCheckpoint,
            Self::CheckpointRequest(_) | Self::Checkpoint(_) => FrameKind::Checkpoint,
            Self::Verdict(_) => FrameKind::Verdict,
            Self::GenerationRequest(_) | Self::Generation(_) => FrameKind::Generation,
            Self::Hooks(_) => FrameKind::Hooks,
            Self::Hooked(_) => FrameKind::Hooked,
        }
    }

    /// Appends the JSON object of a control message. Stream frames have none.
    fn write_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => hello.write_json(out),
            Self::Fail(fail) => fail.write_json(out),
            Self::Ping(ping) | Self::Pong(ping) => ping.write_json(out),
            Self::Ok | Self::InfoRequest => object!(out, {}),
            Self::Rebind(rebind) => rebind.write_json(out),
            Self::Progress(progress) => progress.write_json(out),
            Self::Rebound(rebound) => rebound.write_json(out),
            Self::Probe(probe) => probe.write_json(out),
            Self::Probed(probed) => probed.write_json(out),
            Self::Quiesce(quiesce) => quiesce.write_json(out),
            Self::Busy(busy) => busy.write_json(out),
            Self::Quiesced(token) | Self::Reopen(Reopen { token }) => {
                control::write_token(*token, out)
            }
            Self::Sever(sever) => sever.write_json(out),
            Self::Exec(exec) => exec.write_json(out),
            Self::Started(started) | Self::Attached(started) => started.write_json(out),
            Self::Stdout(_) | Self::Stderr(_) | Self::Stdin(_) => {}
            Self::Exited(exited) => exited.write_json(out),
            Self::Attach(attach) => attach.write_json(out),
            Self::Ack(ack) => ack.write_json(out),
            Self::Gap(gap) => gap.write_json(out),
            Self::StdinEof(eof) => eof.write_json(out),
            Self::Window(window) => window.write_json(out),
            Self::Signal(signal) => signal.write_json(out),
            Self::Resize(size) => size.write_json(out),
            Self::ExitAck(ack) => ack.write_json(out),
            Self::SessionsRequest(request) => request.write_json(out),
            Self::Sessions(sessions) => sessions.write_json(out),
            Self::Info(info) => info.write_json(out),
            Self::Shutdown(shutdown) => shutdown.write_json(out),
            Self::AwaitCheckpoint(request) => request.write_json(out),
            Self::CheckpointRequest(request) => request.write_json(out),
            Self::Checkpoint(checkpoint) => checkpoint.write_json(out),
            Self::Verdict(verdict) => verdict.write_json(out),
            Self::GenerationRequest(request) => request.write_json(out),
            Self::Generation(generation) => checkpoint::write_new_generation(*generation, out),
            Self::Hooks(hooks) => hooks.write_json(out),
            Self::Hooked(hooked) => hooked.write_json(out),
        }
    }
}

/// Reads the JSON object of a control frame.
fn read<T>(
    frame: Frame<'_>,
    read: impl FnOnce(&Object) -> Result<T, JsonError>,
) -> Result<T, PayloadError> {
    let kind = frame.kind;
    Object::parse(frame.payload)
        .and_then(|object| read(&object))
        .map_err(|source| PayloadError::Json { kind, source })
}

#[cfg(test)]
mod tests;
