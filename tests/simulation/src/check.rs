//! What must hold after every turn, as it shows from outside; the core's own view is
//! [`Agent::assert_invariants`](agent::agent::Agent::assert_invariants).

use agent::agent::state::State;
use agent::agent::{Headers, LISTENER_BACKOFF, Stream};

use crate::guest::Guest;
use crate::kernel::{Far, Source};

impl Guest {
    /// Panics, with what is broken.
    pub fn check(&self) {
        self.agent.assert_invariants();
        self.check_queues();
        self.check_connections();
        self.check_outputs();
        self.check_inputs();
        self.check_question();
    }

    /// A question is given up at some time, and none is open while the guest is silent.
    fn check_question(&self) {
        if self.question.is_some() {
            assert!(self.agent.poll_timeout().is_some(), "no end to a question");
            let state = self.agent.state();
            assert!(self.is_watching && state != State::Quiesced, "{state:?}");
        }
    }

    /// Whether the loop will come back to a source by itself.
    fn is_expected(&self, source: Source) -> bool {
        self.kernel.events.contains(&source) || self.ready.contains(&source)
    }

    /// Connections that were not accepted will be: there is an event, or a time for another try.
    fn check_queues(&self) {
        let kernel = &self.kernel;
        let is_left = (!kernel.queue.is_empty() && !self.is_expected(Source::Listener))
            || (!kernel.local_queue.is_empty() && !self.is_expected(Source::LocalListener));
        let next = self.agent.poll_timeout();
        let is_tried = next.is_some_and(|at| at <= self.now + LISTENER_BACKOFF);
        assert!(
            !is_left || is_tried || kernel.is_edge_lost,
            "connections wait to be accepted"
        );
    }

    /// A connection that is open is one that the core knows; it is registered for what the core
    /// wants; and no byte waits for an edge that will not come.
    fn check_connections(&self) {
        for (id, (number, is_unread)) in &self.connections {
            let wanted = self.agent.interest(*id);
            let wanted = wanted.unwrap_or_else(|| panic!("{id} is open and forgotten"));
            let mut headers = Headers::default();
            let has_pending = !self.agent.pending(*id, &mut headers).is_empty();
            assert_eq!(wanted.writable, has_pending, "{id} waits to write nothing");
            let wire = &self.kernel.wires[*number];
            let is_wanted = wanted.readable || wanted.writable;
            let registered = is_wanted.then_some((wanted.readable, wanted.writable));
            assert_eq!(wire.registered, registered, "{id} is registered otherwise");
            if self.is_expected(Source::Connection(*id)) || wire.far != Far::Open {
                continue;
            }
            let has_room = wire.to_host.len() < wire.capacity;
            assert!(
                !has_pending || !has_room,
                "{id} has answers that nobody writes"
            );
            let is_readable = wanted.readable && !wire.to_guest.is_empty();
            assert!(
                !is_readable,
                "{id} has requests that nobody reads ({is_unread})"
            );
        }
    }

    /// Output that is not read is output for which there was no room, and the core will say when
    /// there is.
    fn check_outputs(&self) {
        for (id, stdio) in &self.stdio {
            for &stream in Stream::ALL {
                let Some(number) = stdio.pipes[stream.index()] else {
                    continue;
                };
                let pipe = &self.kernel.pipes[number];
                let is_readable = pipe.len > 0 || pipe.holders == 0;
                if is_readable && !self.is_expected(Source::Output(*id, stream.index())) {
                    let is_stalled = self.agent.is_output_stalled(*id, stream);
                    assert!(is_stalled, "{stream:?} of {id} is read no more");
                }
            }
        }
    }

    /// Input that is not written is input that the command does not take.
    fn check_inputs(&self) {
        for (id, stdio) in &self.stdio {
            let Some(number) = stdio.pipes[crate::pattern::INPUT] else {
                continue;
            };
            let pipe = &self.kernel.pipes[number];
            let is_stuck = !self.agent.input_pending(*id).is_empty()
                && (pipe.len < pipe.capacity || pipe.holders == 0)
                && !self.is_expected(Source::Input(*id));
            assert!(!is_stuck, "input of {id} is written no more");
        }
    }
}
