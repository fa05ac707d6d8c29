//! Moves the bytes of an [`Exchange`]: the blocking half of every unary request to a guest.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::eventfd::EventFd;
use shared::exchange::{ATTEMPTS_KEPT_MAX, Exchange, Request, SILENCE_FIRST, Want};
use shared::message::Message;

use super::HOST_VERSION;
use super::address::{Endpoint, GuestAddress};
use super::answer::{Answer, AskError, AskErrorReason, AttemptLog};
use super::connection::{Connection, ConnectionError, Patience};
use crate::failpoint::{self, Point, reach};
use crate::os::deadline::{WaitError, Watch};
use crate::os::random;

/// How long the first attempt may be silent over vhost-vsock. In each traced restore (QEMU 7.2.22,
/// Linux 6.1) the first connection got no answer, and the second did. The host gets no event for
/// this, so each millisecond here delays READY. Firecracker closes lost connections.
const VSOCK_SILENCE_FIRST: Duration = Duration::from_millis(25);

const fn first_silence(address: &GuestAddress) -> Duration {
    match address {
        GuestAddress::Vsock { .. } => VSOCK_SILENCE_FIRST,
        GuestAddress::HybridVsock { .. } | GuestAddress::Unix { .. } => SILENCE_FIRST,
    }
}

/// Sends `request` until it is answered, finally refused, or the watch ends.
pub(super) fn ask(
    endpoint: &Endpoint,
    request: Request,
    watch: &Watch<'_>,
    is_awaited: bool,
) -> Result<Answer<Message>, AskError> {
    let sent = failpoint::sent(&request);
    let exchange = Exchange::new(request, HOST_VERSION, Instant::now(), watch.deadline())
        .with_first_silence(first_silence(&endpoint.address));
    let mut driver = Driver {
        endpoint,
        watch,
        exchange,
        sent,
        connection: None,
        patience: Patience::new(is_awaited, Instant::now()),
        last: None,
        causes: Vec::new(),
    };
    match driver.run() {
        Ok(()) => driver.into_answer(),
        Err(reason) => {
            let attempts = driver.exchange.attempt_count();
            Err(AskError {
                endpoint: endpoint.to_string().into(),
                attempts,
                log: driver.log().into(),
                reason,
                last: driver.last,
            })
        }
    }
}

struct Driver<'a> {
    endpoint: &'a Endpoint,
    watch: &'a Watch<'a>,
    exchange: Exchange,
    /// The failpoint after the request was written.
    sent: Option<Point>,
    connection: Option<Connection>,
    patience: Patience,
    last: Option<io::Error>,
    /// Attempts whose connection failed: their numbers, and why.
    causes: Vec<(u32, String)>,
}

impl Driver<'_> {
    /// The attempts that have ended, each with its cause.
    fn log(&self) -> Vec<AttemptLog> {
        let cause = |number: u32| {
            let found = self.causes.iter().find(|(of, _)| *of == number);
            found.map(|(_, cause)| cause.clone())
        };
        let attempts = (1..).zip(self.exchange.attempts());
        attempts
            .map(|(number, attempt)| AttemptLog {
                attempt: *attempt,
                cause: cause(number),
            })
            .collect()
    }

    fn run(&mut self) -> Result<(), AskErrorReason> {
        loop {
            match self.exchange.poll(Instant::now()) {
                Want::Connect { until } => {
                    self.connection = None;
                    let result = self.connect(until)?;
                    self.report(result)?;
                }
                Want::Read { until } => {
                    let result = self.read(until);
                    self.report(result)?;
                }
                Want::Pause { until } => {
                    self.connection = None;
                    pause(self.watch, until)?;
                }
                Want::Finished => return Ok(()),
            }
        }
    }

    fn connect(&mut self, until: Instant) -> Result<Result<(), ConnectionError>, AskErrorReason> {
        let nonce = random::nonce().map_err(AskErrorReason::Local)?;
        let flight = self.exchange.flight(wall_clock_ns(), nonce);
        let opened = Connection::open(self.endpoint, &flight, &self.watch.at(until));
        if opened.is_ok() {
            self.patience.note_connected();
        }
        if let (Ok(_), Some(point)) = (&opened, self.sent) {
            reach(point).map_err(|injected| AskErrorReason::Local(injected.into()))?;
        }
        Ok(opened.map(|connection| self.connection = Some(connection)))
    }

    fn read(&mut self, until: Instant) -> Result<(), ConnectionError> {
        let Some(connection) = &mut self.connection else {
            return Err(ConnectionError::Closed {
                source: io::ErrorKind::NotConnected.into(),
            });
        };
        let bytes = connection.read(&self.watch.at(until))?;
        self.exchange.handle_bytes(bytes, Instant::now());
        Ok(())
    }

    /// Tells the exchange how the connection ended, unless no other connection can succeed.
    fn report(&mut self, result: Result<(), ConnectionError>) -> Result<(), AskErrorReason> {
        let now = Instant::now();
        match result.map_err(|error| self.patience.weigh(error, now, self.watch)) {
            Ok(()) => {}
            Err(ConnectionError::Closed { source }) => {
                log::debug!("{}: {source}", self.endpoint);
                if self.causes.len() < ATTEMPTS_KEPT_MAX {
                    let number = self.exchange.attempt_count();
                    self.causes.push((number, source.to_string()));
                }
                self.last = Some(source);
                self.exchange.handle_closed(now);
            }
            Err(ConnectionError::Deadline) => self.exchange.handle_timeout(now),
            Err(ConnectionError::VmmEnded) => return Err(AskErrorReason::VmmEnded),
            Err(
                error @ (ConnectionError::Absent { .. }
                | ConnectionError::NotHybridVsock(_)
                | ConnectionError::Local { .. }),
            ) => return Err(AskErrorReason::Connection(error)),
        }
        Ok(())
    }

    fn into_answer(self) -> Result<Answer<Message>, AskError> {
        let attempts = self.exchange.attempt_count();
        let log = self.log();
        let hello = self.exchange.hello().cloned();
        let endpoint = self.endpoint;
        let error = |reason, last, log| AskError {
            endpoint: endpoint.to_string().into(),
            attempts,
            log: Vec::into(log),
            reason,
            last,
        };
        match (self.exchange.into_result(), hello, self.connection) {
            (Ok(content), Some(hello), Some(connection)) => Ok(Answer {
                content,
                hello,
                attempts,
                log,
                connection,
            }),
            (Err(reason), ..) => Err(error(AskErrorReason::Exchange(reason), self.last, log)),
            // An exchange is only answered after HELLO, on the connection that is open.
            (Ok(_), ..) => {
                let source = io::Error::other("an answer without a connection");
                Err(error(AskErrorReason::Local(source), None, log))
            }
        }
    }
}

/// Waits until a point in time, or for the end of the VMM.
pub(crate) fn pause(watch: &Watch<'_>, until: Instant) -> Result<(), AskErrorReason> {
    match outlives(watch, until) {
        Ok(true) => Ok(()),
        Ok(false) => Err(AskErrorReason::VmmEnded),
        Err(source) => Err(AskErrorReason::Local(source)),
    }
}

/// Waits until a point in time. `false` once the VMM has ended.
pub(crate) fn outlives(watch: &Watch<'_>, until: Instant) -> io::Result<bool> {
    // An eventfd that stays 0 is never readable: the deadline or the VMM's end ends the wait.
    let never = EventFd::new()?;
    match watch.at(until).readable(&never) {
        Ok(()) | Err(WaitError::Deadline) => Ok(true),
        Err(WaitError::ProcessExited) => Ok(false),
        Err(WaitError::Io(source)) => Err(source),
    }
}

/// The host's wall clock, ns since 1970 UTC.
fn wall_clock_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use shared::exchange::AttemptEnd;
    use shared::frame::Decoder;
    use shared::id::Instance;
    use shared::message::{Depth, Fail, FailCode, Hello, Probed, Role};
    use shared::version::SUPPORTED;

    use super::*;
    use crate::testing::TempDir;

    /// Reads HELLO and one request.
    fn read_request(peer: &mut UnixStream) -> Message {
        let mut decoder = Decoder::new();
        let mut bytes = [0; 4096];
        loop {
            while let Some(frame) = decoder.poll_frame().unwrap() {
                match Message::parse(frame, Role::Host).unwrap() {
                    Message::Hello(_) => {}
                    request => return request,
                }
            }
            let len = peer.read(&mut bytes).unwrap();
            assert!(len > 0, "the host closed");
            decoder.push(&bytes[..len]);
        }
    }

    fn answer(peer: &mut UnixStream, messages: &[Message]) {
        let hello = Message::Hello(Hello {
            protocol: SUPPORTED,
            role: Role::Guest,
            version: "0".to_owned(),
            boot_id: None,
            generation: None,
            instance: Some(Instance::from_bytes([7; 16])),
            sessions_begun: 3,
        });
        let mut bytes = hello.encode();
        messages
            .iter()
            .for_each(|message| message.encode_into(&mut bytes));
        peer.write_all(&bytes).unwrap();
    }

    fn probed(request: &Message) -> Message {
        let Message::Probe(probe) = request else {
            panic!("{request:?}")
        };
        Message::Probed(Probed {
            generation: None,
            nonce: probe.nonce,
            listener_serial: 1,
            accepts_since_rebind: 1,
            exec_us: None,
            hooks: false,
        })
    }

    /// Runs a PROBE against a guest that treats its connections as `guest` does.
    fn probe(
        timeout: Duration,
        guest: impl FnOnce(&UnixListener) + Send,
    ) -> Result<Answer<Message>, AskError> {
        let temp = TempDir::new("driver");
        let path = temp.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let endpoint = Endpoint {
            address: GuestAddress::Unix { path },
            port: 0,
        };
        let request = Request::Probe {
            generation: None,
            depth: Depth::Listener,
        };
        thread::scope(|scope| {
            scope.spawn(|| guest(&listener));
            let watch = Watch::until(Instant::now() + timeout);
            ask(&endpoint, request, &watch, false)
        })
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn only_vhost_vsock_is_asked_again_sooner() {
        let path = || "guest.sock".into();
        let vsock = GuestAddress::Vsock { cid: 3 };
        assert!(first_silence(&vsock) < SILENCE_FIRST);
        let hybrid = GuestAddress::HybridVsock { uds_path: path() };
        for address in [hybrid, GuestAddress::Unix { path: path() }] {
            assert_eq!(first_silence(&address), SILENCE_FIRST);
        }
    }

    #[test]
    fn an_answer_comes_back_with_its_connection() {
        let answer = probe(LONG, |listener| {
            let (mut peer, _) = listener.accept().unwrap();
            let request = read_request(&mut peer);
            answer(&mut peer, &[probed(&request)]);
        });
        let answer = answer.unwrap();
        assert_eq!(answer.attempts, 1);
        assert!(matches!(answer.content, Message::Probed(_)));
    }

    #[test]
    fn a_connection_that_closes_is_made_again_at_once() {
        let answer = probe(LONG, |listener| {
            for _ in 0..2 {
                drop(listener.accept().unwrap());
            }
            let (mut peer, _) = listener.accept().unwrap();
            let request = read_request(&mut peer);
            answer(&mut peer, &[probed(&request)]);
        });
        let answer = answer.unwrap();
        assert_eq!(answer.attempts, 3);
        let ends: Vec<_> = answer.log.iter().map(|log| log.attempt.end).collect();
        let [closed, answered] = [AttemptEnd::Closed, AttemptEnd::Answered];
        assert_eq!(ends, [closed, closed, answered]);
        let causes: Vec<_> = answer.log.iter().map(|log| log.cause.is_some()).collect();
        assert_eq!(causes, [true, true, false]);
    }

    #[test]
    fn a_refusal_for_good_ends_it() {
        let error = probe(LONG, |listener| {
            let (mut peer, _) = listener.accept().unwrap();
            read_request(&mut peer);
            let fail = Fail::new(FailCode::Probe, "cannot \x1b[1mspawn");
            answer(&mut peer, &[Message::Fail(fail)]);
        });
        let text = error.unwrap_err().to_string();
        assert_eq!(
            text,
            "the guest refused PROBE (probe): cannot \\u{1b}[1mspawn"
        );
    }

    #[test]
    fn silence_ends_with_the_deadline_and_says_how_often_it_was_tried() {
        let error = probe(Duration::from_millis(20), |listener| {
            let (mut peer, _) = listener.accept().unwrap();
            read_request(&mut peer);
            // Held open until the host gives up.
            let _ = peer.read(&mut [0; 1]);
        });
        let error = error.unwrap_err();
        assert_eq!(error.attempts, 1);
        assert!(
            error.to_string().contains("PROBE was not answered in time"),
            "{error}"
        );
    }
}
