//! Plays Firecracker's vsock device between `host-tool` and an agent on a Unix socket: the CONNECT
//! line, the OK line, and every way in which connections break around a snapshot.
//!
//! A real VMM does each of these sometimes; this one does it on demand. It shares with Firecracker
//! that the CONNECT line has to come in one piece, that an end of file without an OK line means
//! that the guest did not accept the connection, and that there is no half-close.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use shared::limits::PORT_DEFAULT;

use crate::DEADLINE;
use crate::acceptor::Acceptor;
use crate::proxy::{Closed, Direction};

/// What the device does with a connection of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Connects it to the agent and passes everything on.
    Passed,
    /// The same, byte by byte.
    Bytewise,
    /// Closes it without an OK line, as when the guest's kernel resets it.
    Refused,
    /// Reads it and never connects it: a lost edge.
    Lost,
    /// Keeps it waiting until [`Muxer::release`]. Then everything that the host has sent arrives,
    /// even when the host has closed the connection meanwhile.
    Held,
    /// Answers OK and nothing more, as for a connection in an accept queue from which it is never
    /// accepted.
    Dead,
    /// Passes it on and closes it after this many bytes in one direction. The CONNECT line does not
    /// count.
    Severed {
        direction: Direction,
        after: usize,
        closed: Closed,
    },
}

/// A connection of the host.
#[derive(Debug)]
struct Link {
    host: UnixStream,
    /// The agent's end, once it is connected.
    guest: Option<UnixStream>,
    is_held: bool,
    /// What the host sent with the CONNECT line was written to the agent's socket.
    is_delivered: bool,
    /// Closed on purpose, perhaps on one side only: the pumps close nothing more.
    is_severed: bool,
}

#[derive(Debug, Default)]
struct State {
    /// For the connections that come next, in this order.
    plan: VecDeque<Treatment>,
    /// For all later ones.
    lasting: Option<Treatment>,
    links: Vec<Link>,
    /// Connections that found the agent's accept queue full.
    refused_count: usize,
    /// Connections whose first bytes were not exactly a CONNECT line and what follows it.
    malformed_count: usize,
}

#[derive(Debug)]
struct Shared {
    agent: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes all threads that wait for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    #[track_caller]
    fn await_state(&self, what: &str, is_there: impl Fn(&State) -> bool) {
        let state = self.state();
        let waited = self
            .changed
            .wait_timeout_while(state, DEADLINE, |state| !is_there(state));
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "{what} did not happen: {state:?}");
    }
}

#[derive(Debug)]
pub struct Muxer {
    shared: Arc<Shared>,
    acceptor: Acceptor,
}

impl Muxer {
    /// Listens at `socket`, with the agent's socket `agent` as the guest's port. It runs until it
    /// is dropped.
    pub fn start(socket: PathBuf, agent: &Path) -> Self {
        let shared = Arc::new(Shared {
            agent: agent.to_path_buf(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let acceptor = Acceptor::open(socket, move |host| take(&of_thread, host));
        Self { shared, acceptor }
    }

    /// Where the host connects.
    pub fn socket(&self) -> &Path {
        self.acceptor.socket()
    }

    /// Sets what to do with the connections that come next, one by one.
    pub fn plan(&self, treatments: &[Treatment]) {
        self.shared.change(|state| state.plan.extend(treatments));
    }

    /// Sets what to do with all connections after the planned ones.
    pub fn treat_all(&self, treatment: Treatment) {
        self.shared.change(|state| state.lasting = Some(treatment));
    }

    /// Passes on all connections from now on.
    pub fn pass_all(&self) {
        self.shared.change(|state| {
            state.plan.clear();
            state.lasting = None;
        });
    }

    /// How many connections have come.
    pub fn count(&self) -> usize {
        self.shared.state().links.len()
    }

    /// How many came without a CONNECT line in one piece.
    pub fn malformed_count(&self) -> usize {
        self.shared.state().malformed_count
    }

    /// How many found the agent's accept queue full.
    pub fn refused_count(&self) -> usize {
        self.shared.state().refused_count
    }

    #[track_caller]
    pub fn await_count(&self, count: usize) {
        let is_there = |state: &State| state.links.len() >= count;
        self.shared
            .await_state(&format!("connection {count}"), is_there);
    }

    /// Waits until connection `index` is in the agent's accept queue; a stopped agent need not
    /// accept it.
    #[track_caller]
    pub fn await_arrival(&self, index: usize) {
        let has_guest =
            |state: &State| matches!(state.links.get(index), Some(Link { guest: Some(_), .. }));
        self.shared
            .await_state("an arrival in the guest", has_guest);
    }

    /// Waits until what the host sent with the CONNECT line of connection `index` is with the
    /// agent.
    #[track_caller]
    pub fn await_delivery(&self, index: usize) {
        let is_delivered = |state: &State| state.links.get(index).is_some_and(|it| it.is_delivered);
        self.shared.await_state("a delivery", is_delivered);
    }

    #[track_caller]
    pub fn await_refused(&self, count: usize) {
        let is_there = |state: &State| state.refused_count >= count;
        self.shared.await_state("a full accept queue", is_there);
    }

    /// Lets a held connection through.
    pub fn release(&self, index: usize) {
        self.shared
            .change(|state| state.links[index].is_held = false);
    }

    /// Lets all held connections through, the latest first.
    #[track_caller]
    pub fn release_backwards(&self) {
        for index in (0..self.count()).rev() {
            if self.shared.state().links[index].is_held {
                self.release(index);
                self.await_arrival(index);
            }
        }
    }

    /// A transport reset: closes all connections, for one side or both.
    pub fn reset(&self, closed: Closed) {
        self.shared.change(|state| {
            for link in &mut state.links {
                link.close(closed);
            }
        });
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        self.acceptor.close();
        self.reset(Closed::Both);
        self.shared.change(|state| {
            state.links.iter_mut().for_each(|link| link.is_held = false);
        });
    }
}

impl Link {
    fn close(&mut self, closed: Closed) {
        self.is_severed = true;
        if closed != Closed::ForGuest {
            drop(self.host.shutdown(Shutdown::Both));
        }
        if let (Some(guest), true) = (&self.guest, closed != Closed::ForHost) {
            drop(guest.shutdown(Shutdown::Both));
        }
    }
}

/// Gives a connection its number and its treatment, in the order of arrival.
fn take(shared: &Arc<Shared>, host: UnixStream) {
    let (index, treatment) = shared.change(|state| {
        let treatment = state.plan.pop_front().or(state.lasting);
        let treatment = treatment.unwrap_or(Treatment::Passed);
        state.links.push(Link {
            host: copy(&host),
            guest: None,
            is_held: treatment == Treatment::Held,
            is_delivered: false,
            is_severed: false,
        });
        (state.links.len() - 1, treatment)
    });
    let shared = Arc::clone(shared);
    thread::spawn(move || serve(&shared, index, host, treatment));
}

fn serve(shared: &Arc<Shared>, index: usize, mut host: UnixStream, treatment: Treatment) {
    let Some(ahead) = read_line(&mut host) else {
        shared.change(|state| state.malformed_count += 1);
        return end(&host);
    };
    match treatment {
        Treatment::Refused => return end(&host),
        Treatment::Lost => return swallow(&mut host),
        Treatment::Dead => {
            drop(host.write_all(&ok_line(index)));
            return swallow(&mut host);
        }
        Treatment::Held => {
            let state = shared.state();
            let is_held = |state: &mut State| state.links[index].is_held;
            drop(shared.changed.wait_while(state, is_held));
        }
        Treatment::Passed | Treatment::Bytewise | Treatment::Severed { .. } => {}
    }
    let Some(guest) = connect_now(&shared.agent) else {
        shared.change(|state| state.refused_count += 1);
        return end(&host);
    };
    shared.change(|state| state.links[index].guest = Some(copy(&guest)));
    if host.write_all(&ok_line(index)).is_err() && treatment != Treatment::Held {
        return end(&guest);
    }
    let pump = |direction, from: &UnixStream, to: &UnixStream| Pump {
        direction,
        treatment,
        shared: Arc::clone(shared),
        index,
        from: copy(from),
        to: copy(to),
        passed: 0,
    };
    let to_host = pump(Direction::ToHost, &guest, &host);
    thread::spawn(move || to_host.run(Vec::new()));
    pump(Direction::ToGuest, &host, &guest).run(ahead);
}

/// One direction of a connection.
struct Pump {
    direction: Direction,
    treatment: Treatment,
    shared: Arc<Shared>,
    index: usize,
    from: UnixStream,
    to: UnixStream,
    passed: usize,
}

impl Pump {
    /// Passes on `bytes`, and then what is read, until one side closes or the cut is reached.
    fn run(mut self, mut bytes: Vec<u8>) {
        loop {
            if let Some((after, closed)) = self.cut()
                && self.passed + bytes.len() >= after
            {
                self.write(&bytes[..after - self.passed]);
                self.shared.state().links[self.index].close(closed);
                return swallow(&mut self.from);
            }
            self.passed += bytes.len();
            if !self.write(&bytes) {
                break;
            }
            if self.direction == Direction::ToGuest {
                let deliver = |state: &mut State| state.links[self.index].is_delivered = true;
                self.shared.change(deliver);
            }
            bytes.resize(16 * 1024, 0);
            match self.from.read(&mut bytes) {
                Ok(len) if len > 0 => bytes.truncate(len),
                _ => break,
            }
        }
        if !self.shared.state().links[self.index].is_severed {
            end(&self.to);
        }
    }

    /// After how many bytes of this direction to close, and for which side.
    fn cut(&self) -> Option<(usize, Closed)> {
        match self.treatment {
            Treatment::Severed {
                direction,
                after,
                closed,
            } if direction == self.direction => Some((after, closed)),
            _ => None,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let len = match self.treatment {
            Treatment::Bytewise => 1,
            _ => bytes.len().max(1),
        };
        let mut pieces = bytes.chunks(len);
        pieces.all(|piece| self.to.write_all(piece).is_ok())
    }
}

/// Reads the CONNECT line, and gives what came behind it.
fn read_line(host: &mut UnixStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 16 * 1024];
    let len = host.read(&mut bytes).ok()?;
    let rest = bytes[..len].strip_prefix(format!("CONNECT {PORT_DEFAULT}\n").as_bytes());
    rest.map(<[u8]>::to_vec)
}

fn ok_line(index: usize) -> Vec<u8> {
    format!("OK {}\n", (1 << 30) + index).into_bytes()
}

/// Connects without waiting, as a guest's kernel accepts a connection: a full queue refuses it.
fn connect_now(agent: &Path) -> Option<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(fd.as_raw_fd(), &UnixAddr::new(agent).ok()?).ok()?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false).ok()?;
    Some(stream)
}

/// Reads and discards until the end of file.
fn swallow(from: &mut UnixStream) {
    while matches!(from.read(&mut [0; 4096]), Ok(len) if len > 0) {}
}

fn end(stream: &UnixStream) {
    drop(stream.shutdown(Shutdown::Both));
}

fn copy(stream: &UnixStream) -> UnixStream {
    stream.try_clone().expect("a descriptor")
}
