//! One connection between a host and a guest, as the transport has it. Writes are never split:
//! what a decoder does with pieces is the business of other tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::agent::ConnectionId;
use shared::frame::Decoder;
use shared::id::Generation;
use shared::message::{Message, Role};

/// Where the guest's end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The request to connect is still under way.
    Travelling,
    /// In the accept queue.
    Queued,
    /// The agent has it.
    Accepted(ConnectionId),
    /// The guest has closed it.
    Gone,
}

/// What the guest reads behind the bytes that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Nothing yet.
    Open,
    /// The peer has closed.
    Closed,
    /// The transport was reset: ENOTCONN.
    Reset,
    /// Nothing, ever: the other end is in another life of the machine.
    Dead,
}

/// A connection.
#[derive(Clone, Debug, Hash)]
pub struct Wire {
    /// Which guest it leads to.
    pub guest: usize,
    /// The guest's end.
    pub place: Place,
    /// Bytes that the guest has not read.
    pub to_guest: Vec<u8>,
    /// Bytes that the host has not read.
    pub to_host: Vec<u8>,
    /// What the guest reads behind them.
    pub ending: Ending,
    /// Whether the guest's loop has an event of it to handle.
    pub has_event: bool,
    /// Which host has the other end open.
    pub host: Option<usize>,
    /// Whether the host reads an end behind the bytes that have come.
    pub is_closed_to_host: bool,
    /// The name that the listener was last registered for when this was accepted.
    pub accepted_for: Option<Generation>,
    /// Whether the transport has lost the edge that its coming makes.
    pub is_edge_lost: bool,
}

impl Wire {
    /// A connection that was just asked for, with the host's first write on it.
    pub fn new(guest: usize, host: usize, flight: Vec<u8>) -> Self {
        Self {
            guest,
            place: Place::Travelling,
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

    /// Whether no end has it any more.
    pub fn is_over(&self) -> bool {
        self.place == Place::Gone && self.host.is_none()
    }

    /// The host closes its end.
    pub fn close_by_host(&mut self) {
        self.host = None;
        self.to_host.clear();
        if self.ending == Ending::Open {
            self.ending = Ending::Closed;
            self.has_event |= matches!(self.place, Place::Accepted(_));
        }
    }

    /// The transport kills the guest's end, with or without a word to the host's.
    pub fn reset_for_guest(&mut self) {
        if matches!(self.place, Place::Queued | Place::Accepted(_)) && self.ending != Ending::Dead {
            self.to_guest.clear();
            self.ending = Ending::Reset;
            self.has_event |= matches!(self.place, Place::Accepted(_));
        }
    }

    /// The transport takes the connection from the host.
    pub fn cut_for_host(&mut self) {
        self.to_host.clear();
        self.is_closed_to_host = true;
    }

    /// What a clone has of it: an end whose other end is elsewhere.
    fn be_of_clone(&mut self, is_reset_seen: bool) {
        self.host = None;
        self.to_host.clear();
        match self.place {
            Place::Travelling => self.place = Place::Gone,
            Place::Gone => {}
            Place::Queued | Place::Accepted(_) if is_reset_seen => self.reset_for_guest(),
            Place::Queued | Place::Accepted(_) => self.ending = Ending::Dead,
        }
    }
}

/// All connections of a world, by number. A copy shares them until it changes one.
#[derive(Clone, Debug, Default, Hash)]
pub struct Wires(BTreeMap<u64, Arc<Wire>>);

impl Wires {
    /// The connection with this number, unless it is over.
    pub fn get(&self, id: u64) -> Option<&Wire> {
        self.0.get(&id).map(Arc::as_ref)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Wire> {
        self.0.get_mut(&id).map(Arc::make_mut)
    }

    /// A new connection.
    pub fn insert(&mut self, id: u64, wire: Wire) {
        self.0.insert(id, Arc::new(wire));
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&u64, &Wire)> {
        self.0.iter().map(|(id, wire)| (id, wire.as_ref()))
    }

    /// Those of one guest.
    pub fn of_guest(&self, guest: usize) -> Vec<u64> {
        let mine = self.iter().filter(|(_, wire)| wire.guest == guest);
        mine.map(|(id, _)| *id).collect()
    }

    /// What a clone has of them.
    pub fn be_of_clone(&mut self, is_reset_seen: bool) {
        for wire in self.0.values_mut() {
            Arc::make_mut(wire).be_of_clone(is_reset_seen);
        }
    }

    /// Forgets those that no end has any more.
    pub fn forget_over(&mut self) {
        self.0.retain(|_, wire| !wire.is_over());
    }
}

/// The messages in whole frames of one side.
pub fn messages(bytes: &[u8], role: Role) -> Vec<Message> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let mut found = Vec::new();
    while let Ok(Some(frame)) = decoder.poll_frame() {
        found.extend(Message::parse(frame, role));
    }
    found
}

/// A message for people: its kind, and the name in it.
pub fn label(message: &Message) -> String {
    let named = |generation: Generation| format!("{}({})", message.kind(), name(generation));
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

/// A generation for people.
pub fn name(generation: Generation) -> String {
    format!("g{}", generation.as_bytes()[0])
}

/// What is written in one go, for people.
pub fn labels(bytes: &[u8], role: Role) -> String {
    let all = messages(bytes, role);
    let all: Vec<_> = all.iter().map(label).collect();
    all.join(", ")
}
