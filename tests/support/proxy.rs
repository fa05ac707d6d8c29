//! A proxy between a client and an agent on Unix sockets, which closes a connection after an exact
//! number of bytes or lines.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use shared::frame::{Decoder, FrameKind, encode_with};
use shared::limits::STREAM_OFFSET_LEN;

use crate::acceptor::Acceptor;

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the agent.
    ToGuest,
    /// From the agent to the client.
    ToHost,
}

/// How much passes before the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// This many bytes.
    Bytes(u64),
    /// Whole frames until the standard output in them has `count` lines, and then `more` bytes of
    /// the next frame.
    Lines {
        count: usize,
        /// 0 cuts between frames.
        more: usize,
    },
}

/// Which end is closed. The other end sees neither data nor an end of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    Both,
    /// The client's, as when the host's end breaks.
    ForHost,
    /// The agent's.
    ForGuest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The direction whose bytes are counted.
    pub direction: Direction,
    pub length: Length,
    pub closed: Closed,
}

#[derive(Debug, Default)]
struct Shared {
    /// For the connections that come next.
    cut: Mutex<Option<Cut>>,
    /// Whether it is for each of them, or for the next one only.
    is_lasting: AtomicBool,
    cuts: AtomicU64,
    to_guest: AtomicU64,
    to_host: AtomicU64,
    /// Both ends of each connection.
    open: Mutex<Vec<UnixStream>>,
}

impl Shared {
    fn close_all(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    acceptor: Acceptor,
}

impl Proxy {
    /// Listens at `socket` and connects to the agent at `agent` for each client. It runs until it
    /// is dropped.
    pub fn start(socket: PathBuf, agent: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let (of_thread, agent) = (Arc::clone(&shared), agent.to_path_buf());
        let acceptor = Acceptor::open(socket, move |client| relay(&of_thread, client, &agent));
        Self { shared, acceptor }
    }

    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        self.acceptor.socket()
    }

    pub fn cut_next(&self, cut: Cut) {
        self.shared.is_lasting.store(false, Ordering::SeqCst);
        self.plan(Some(cut));
    }

    pub fn cut_each(&self, cut: Cut) {
        self.shared.is_lasting.store(true, Ordering::SeqCst);
        self.plan(Some(cut));
    }

    fn plan(&self, cut: Option<Cut>) {
        let planned = self.shared.cut.lock();
        *planned.unwrap_or_else(PoisonError::into_inner) = cut;
    }

    pub fn cut_count(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Bytes passed on in a direction, on all connections.
    pub fn passed(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToGuest => self.shared.to_guest.load(Ordering::SeqCst),
            Direction::ToHost => self.shared.to_host.load(Ordering::SeqCst),
        }
    }

    /// Closes all connections, and forgets a cut that was not reached.
    pub fn reset(&self) {
        self.plan(None);
        self.shared.close_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.close();
        self.shared.close_all();
    }
}

/// Starts the two threads of a connection.
fn relay(shared: &Arc<Shared>, host: UnixStream, agent: &Path) {
    // Without an agent the client's connection is closed.
    let Ok(guest) = UnixStream::connect(agent) else {
        return;
    };
    let planned = {
        let mut cut = shared.cut.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.is_lasting.load(Ordering::SeqCst) {
            true => *cut,
            false => cut.take(),
        }
    };
    let copy = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
    let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
    open.extend([copy(&host), copy(&guest)]);
    drop(open);
    let is_cut = Arc::new(AtomicBool::new(false));
    for direction in [Direction::ToGuest, Direction::ToHost] {
        let mut pump = Pump {
            is_cut: Arc::clone(&is_cut),
            shared: Arc::clone(shared),
            direction,
            cut: planned.filter(|cut| cut.direction == direction),
            host: copy(&host),
            guest: copy(&guest),
        };
        thread::spawn(move || pump.run());
    }
}

/// One direction of a connection.
struct Pump {
    shared: Arc<Shared>,
    direction: Direction,
    /// Set if this direction is to be cut.
    cut: Option<Cut>,
    /// Set when one direction was cut: the other one then closes nothing.
    is_cut: Arc<AtomicBool>,
    host: UnixStream,
    guest: UnixStream,
}

impl Pump {
    /// Passes bytes on until one side closes or the cut is reached.
    fn run(&mut self) {
        let ended = match self.cut.map(|cut| cut.length) {
            None => self.pass(u64::MAX),
            Some(Length::Bytes(count)) => self.pass(count),
            Some(Length::Lines { count, more }) => self.pass_lines(count, more),
        };
        match self.cut {
            Some(cut) if ended == Ended::Reached => {
                self.is_cut.store(true, Ordering::SeqCst);
                self.shared.cuts.fetch_add(1, Ordering::SeqCst);
                self.close(cut.closed);
            }
            _ if self.is_cut.load(Ordering::SeqCst) => {}
            _ => self.close(Closed::Both),
        }
        // The end that stays open may send more, which is discarded.
        while self.read(&mut [0; 4096]) > 0 {}
    }

    fn close(&self, closed: Closed) {
        if closed != Closed::ForGuest {
            drop(self.host.shutdown(Shutdown::Both));
        }
        if closed != Closed::ForHost {
            drop(self.guest.shutdown(Shutdown::Both));
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let from = match self.direction {
            Direction::ToGuest => &mut self.host,
            Direction::ToHost => &mut self.guest,
        };
        from.read(bytes).unwrap_or(0)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        let (to, passed) = match self.direction {
            Direction::ToGuest => (&mut self.guest, &self.shared.to_guest),
            Direction::ToHost => (&mut self.host, &self.shared.to_host),
        };
        passed.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        to.write_all(bytes).is_ok()
    }

    fn pass(&mut self, count: u64) -> Ended {
        let mut left = count;
        let mut bytes = [0; 16 * 1024];
        while left > 0 {
            let room = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let got = self.read(&mut bytes[..room]);
            if got == 0 || !self.write(&bytes[..got]) {
                return Ended::Closed;
            }
            left -= got as u64;
        }
        Ended::Reached
    }

    fn pass_lines(&mut self, count: usize, more: usize) -> Ended {
        let mut decoder = Decoder::new();
        let mut bytes = [0; 16 * 1024];
        let mut lines = 0;
        loop {
            let got = self.read(&mut bytes);
            if got == 0 {
                return Ended::Closed;
            }
            decoder.push(&bytes[..got]);
            while let Ok(Some(frame)) = decoder.poll_frame() {
                let mut out = Vec::new();
                encode_with(&mut out, frame.kind, |out| {
                    out.extend_from_slice(frame.payload);
                });
                let is_cut = lines >= count;
                if is_cut {
                    out.truncate(more);
                } else if frame.kind == FrameKind::Stdout {
                    let data = frame.payload.iter().skip(STREAM_OFFSET_LEN);
                    lines += data.filter(|&&byte| byte == b'\n').count();
                }
                if !self.write(&out) {
                    return Ended::Closed;
                }
                if is_cut {
                    return Ended::Reached;
                }
            }
        }
    }
}

/// Why a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// One side closed.
    Closed,
    /// The cut was reached.
    Reached,
}
