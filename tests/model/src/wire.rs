//! A connection between a host and a guest, as the transport sees it. Writes are never split; other
//! tests give decoders their bytes in pieces.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::agent::ConnectionId;
use shared::frame::Decoder;
use shared::id::Generation;
use shared::message::{Message, Role};

/// How far the guest's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The request to connect is on its way.
    Travelling,
    /// In the accept queue.
    Queued,
    Accepted(ConnectionId),
    /// The guest has closed it.
    Gone,
}

/// What the guest reads after the bytes that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    Open,
    /// The peer has closed.
    Closed,
    /// The transport was reset: ENOTCONN.
    Reset,
    /// Nothing, ever: the other end belongs to another life of the machine.
    Dead,
}

#[derive(Clone, Debug, Hash)]
pub struct Wire {
    /// The guest that it leads to.
    pub guest: usize,
    pub stage: Stage,
    /// Bytes that the guest has not read.
    pub to_guest: Vec<u8>,
    /// Bytes that the host has not read.
    pub to_host: Vec<u8>,
    /// What the guest reads after them.
    pub ending: Ending,
    /// Whether the guest's loop has an event of it to handle.
    pub has_event: bool,
    /// The host that has the other end open.
    pub host: Option<usize>,
    /// Whether the host reads an end of file after the bytes that have come.
    pub is_closed_to_host: bool,
    /// The generation that the listener was last registered for when this was accepted.
    pub accepted_for: Option<Generation>,
    /// Whether the transport has lost the edge of its arrival.
    pub is_edge_lost: bool,
}

impl Wire {
    /// A connection that a host has just asked for, with its first write.
    pub fn new(guest: usize, host: usize, flight: Vec<u8>) -> Self {
        Self {
            guest,
            stage: Stage::Travelling,
            to_guest: flight,
            to_host: Vec::new(),
            ending: Ending::Open,
            has_event: false,
            host: Some(host),
            is_closed_to_host: false,
            accepted_for: None,
            is_edge_lost: false,
        }
    }

    /// Whether both ends are closed.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Gone && self.host.is_none()
    }

    /// The host closes its end.
    pub fn close_by_host(&mut self) {
        self.host = None;
        self.to_host.clear();
        if self.ending == Ending::Open {
            self.ending = Ending::Closed;
            self.has_event |= matches!(self.stage, Stage::Accepted(_));
        }
    }

    /// The transport resets the guest's end, and perhaps the host's.
    pub fn reset_for_guest(&mut self) {
        if matches!(self.stage, Stage::Queued | Stage::Accepted(_)) && self.ending != Ending::Dead {
            self.to_guest.clear();
            self.ending = Ending::Reset;
            self.has_event |= matches!(self.stage, Stage::Accepted(_));
        }
    }

    /// The host loses the connection.
    pub fn cut_for_host(&mut self) {
        self.to_host.clear();
        self.is_closed_to_host = true;
    }

    /// Turns it into what a clone has of it: an end without a peer.
    fn be_of_clone(&mut self, is_reset_seen: bool) {
        self.host = None;
        self.to_host.clear();
        match self.stage {
            Stage::Travelling => self.stage = Stage::Gone,
            Stage::Gone => {}
            Stage::Queued | Stage::Accepted(_) if is_reset_seen => self.reset_for_guest(),
            Stage::Queued | Stage::Accepted(_) => self.ending = Ending::Dead,
        }
    }
}

/// All connections of a world, by number. Copies share them until one changes.
#[derive(Clone, Debug, Default, Hash)]
pub struct Wires(BTreeMap<u64, Arc<Wire>>);

impl Wires {
    /// The connection with this number, unless it is over.
    pub fn get(&self, id: u64) -> Option<&Wire> {
        self.0.get(&id).map(Arc::as_ref)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Wire> {
        self.0.get_mut(&id).map(Arc::make_mut)
    }

    pub fn insert(&mut self, id: u64, wire: Wire) {
        self.0.insert(id, Arc::new(wire));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&u64, &Wire)> {
        self.0.iter().map(|(id, wire)| (id, wire.as_ref()))
    }

    pub fn of_guest(&self, guest: usize) -> Vec<u64> {
        let mine = self.iter().filter(|(_, wire)| wire.guest == guest);
        mine.map(|(id, _)| *id).collect()
    }

    /// Turns them into what a clone has of them.
    pub fn be_of_clone(&mut self, is_reset_seen: bool) {
        for wire in self.0.values_mut() {
            Arc::make_mut(wire).be_of_clone(is_reset_seen);
        }
    }

    /// Removes those that are closed at both ends.
    pub fn forget_over(&mut self) {
        self.0.retain(|_, wire| !wire.is_over());
    }
}

/// The messages in the whole frames of one side.
pub fn messages(bytes: &[u8], role: Role) -> Vec<Message> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let mut found = Vec::new();
    while let Ok(Some(frame)) = decoder.poll_frame() {
        found.extend(Message::parse(frame, role));
    }
    found
}

/// The kind of a message and its generation, for the trace.
pub fn label(message: &Message) -> String {
    let named = |generation: Generation| format!("{}({})", message.kind(), short(generation));
    match message {
        Message::Rebind(it) => named(it.generation),
        Message::Rebound(it) => named(it.generation),
        Message::Probed(it) => it.generation.map_or_else(|| "PROBED".to_owned(), named),
        Message::Probe(it) => it.generation.map_or_else(|| "PROBE".to_owned(), named),
        Message::Exec(it) => it.generation.map_or_else(|| "EXEC".to_owned(), named),
        Message::Fail(it) => format!("FAIL({})", it.code),
        other => other.kind().to_string(),
    }
}

/// A generation, for the trace.
pub fn short(generation: Generation) -> String {
    format!("g{}", generation.as_bytes()[0])
}

/// All messages of one write, for the trace.
pub fn labels(bytes: &[u8], role: Role) -> String {
    let all = messages(bytes, role);
    let all: Vec<_> = all.iter().map(label).collect();
    all.join(", ")
}
