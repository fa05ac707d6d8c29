//! Goal: a command is started at most once, and the client reports its true end or that it is
//! unknown. Method: the conversation is cut at every byte of each direction, with and without
//! notice.

use super::guest::{END, GREETING, Guest};
use super::*;

const INPUT: &[u8] = b"first line\nsecond line, without an end";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToGuest,
    ToHost,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Both ends see the close.
    Closed,
    /// Bytes are lost from now on, and neither end is told.
    Silent,
    /// It is closed, and a new guest without the session takes the old one's place.
    Rebooted,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    way: Way,
    /// Number of bytes of this connection that still pass.
    after: usize,
    manner: Manner,
}

struct World {
    client: SessionClient,
    guest: Guest,
    now: Instant,
    /// The ends of the connections, in order. Later connections are not cut.
    cuts: VecDeque<Cut>,
    passed: [usize; 2],
    is_down: bool,
    input: &'static [u8],
    output: [Vec<u8>; 2],
    /// Number of starts in guests that were replaced.
    start_count_before: u32,
}

impl World {
    fn new(cuts: &[Cut]) -> Self {
        let now = Instant::now();
        let deadlines = Deadlines {
            start: Some(now + ABSENCE),
            absence_max: Some(ABSENCE),
            end: None,
        };
        Self {
            client: SessionClient::new(exec(), "0.1.0", now, deadlines),
            guest: Guest::default(),
            now,
            cuts: cuts.iter().copied().collect(),
            passed: [0; 2],
            is_down: false,
            input: INPUT,
            output: [Vec::new(), Vec::new()],
            start_count_before: 0,
        }
    }

    /// Lets through as much of `bytes` as the cut allows.
    fn pass<'a>(&mut self, way: Way, bytes: &'a [u8]) -> &'a [u8] {
        let passed = &mut self.passed[way as usize];
        let rest = match self.cuts.front() {
            _ if self.is_down => 0,
            Some(cut) if cut.way == way => cut.after - *passed,
            Some(_) | None => usize::MAX,
        };
        let len = bytes.len().min(rest);
        *passed += len;
        self.is_down |= len == rest;
        &bytes[..len]
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let bytes = self.pass(Way::ToGuest, bytes);
        self.guest.handle_bytes(bytes);
    }

    fn connect(&mut self) {
        self.guest.connect();
        self.passed = [0; 2];
        let flight = self.client.flight();
        self.deliver(&flight);
        self.client.handle_connected(self.now);
    }

    /// Moves all pending bytes. Returns whether there were any.
    fn talk(&mut self) -> bool {
        let bytes = self.client.poll_output().to_vec();
        self.client.handle_written(bytes.len());
        self.deliver(&bytes);
        let answer = self.guest.take_output();
        let answer = self.pass(Way::ToHost, &answer).to_vec();
        if !answer.is_empty() {
            self.client.handle_bytes(&answer, self.now);
        }
        while let Some(event) = self.client.poll_event(self.now) {
            if let Event::Output { stream, bytes } = event {
                self.output[stream.index()].extend_from_slice(bytes);
                let len = bytes.len();
                self.client.handle_consumed(stream, len, self.now);
            }
        }
        let room = self.client.input_room().min(self.input.len());
        self.client.handle_input(&self.input[..room]);
        self.input = &self.input[room..];
        if self.input.is_empty() {
            self.client.handle_input_end();
        }
        !(bytes.is_empty() && answer.is_empty() && room == 0)
    }

    /// Ends a connection that is down, once no bytes move any more.
    fn go_down(&mut self) {
        self.is_down = false;
        let Some(cut) = self.cuts.pop_front() else {
            return;
        };
        if cut.manner == Manner::Rebooted {
            let gone = std::mem::take(&mut self.guest);
            self.guest.instance = gone.instance + 1;
            self.start_count_before += gone.start_count;
        }
        self.client.handle_closed(self.now);
    }

    fn run(mut self) -> (Result<Exited, SessionError>, Self) {
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(
                turns < 1000,
                "no end: {:?} {:?} {}",
                self.client,
                self.cuts,
                self.is_down
            );
            match self.client.poll(self.now) {
                Want::Connect { .. } => {
                    self.is_down = false;
                    self.connect();
                }
                Want::Talk { until } => {
                    let is_silent = self
                        .cuts
                        .front()
                        .is_some_and(|c| c.manner == Manner::Silent);
                    if self.talk() {
                        continue;
                    }
                    if self.is_down && !is_silent {
                        self.go_down();
                    } else {
                        self.now = until;
                        self.client.handle_timeout(self.now);
                        if matches!(self.client.poll(self.now), Want::Connect { .. }) {
                            self.cuts.pop_front();
                        }
                    }
                }
                Want::Pause { until } => self.now = until,
                Want::Finished => break,
            }
        }
        let client = std::mem::replace(&mut self.client, Self::new(&[]).client);
        (client.into_result(), self)
    }
}

/// Number of bytes of each direction without a cut.
fn whole() -> [usize; 2] {
    let (result, world) = World::new(&[]).run();
    assert_eq!(result.unwrap().status, ExitStatus::Code(END));
    assert_eq!(world.output, [INPUT, GREETING]);
    assert!(world.guest.is_thanked);
    world.passed
}

#[track_caller]
fn check(cuts: &[Cut]) {
    let (result, world) = World::new(cuts).run();
    let starts = world.guest.start_count + world.start_count_before;
    match result {
        Ok(exited) => {
            assert_eq!(exited.status, ExitStatus::Code(END), "{cuts:?}");
            assert_eq!(world.output, [INPUT, GREETING], "{cuts:?}");
            assert_eq!(starts, 1, "{cuts:?}");
        }
        Err(error) => {
            let is_excused = cuts.iter().any(|cut| cut.manner == Manner::Rebooted);
            assert!(is_excused, "{cuts:?}: {error}");
            assert!(error.to_string().contains("unknown"), "{cuts:?}: {error}");
            assert!(starts <= 1, "{cuts:?}: {starts} starts");
        }
    }
}

fn at_every_byte(manner: Manner) -> Vec<Cut> {
    let [to_guest, to_host] = whole();
    let cut = |way, after| Cut { way, after, manner };
    let first = (0..to_guest).map(|after| cut(Way::ToGuest, after));
    first
        .chain((0..to_host).map(|after| cut(Way::ToHost, after)))
        .collect()
}

#[test]
fn a_cut_at_any_byte_changes_nothing() {
    for cut in at_every_byte(Manner::Closed) {
        check(&[cut]);
    }
}

#[test]
fn a_connection_that_goes_silent_at_any_byte_changes_nothing() {
    for cut in at_every_byte(Manner::Silent) {
        check(&[cut]);
    }
}

#[test]
fn a_guest_that_is_replaced_is_never_taken_for_the_old_one() {
    for cut in at_every_byte(Manner::Rebooted) {
        check(&[cut]);
    }
}

#[test]
fn many_cuts_in_a_row_change_nothing() {
    let cuts = at_every_byte(Manner::Closed);
    for start in (0..cuts.len()).step_by(7) {
        let steps = [0, 31, 67, 101, 149, 211];
        let chosen: Vec<_> = steps
            .iter()
            .map(|step| cuts[(start + step) % cuts.len()])
            .collect();
        check(&chosen);
    }
}
