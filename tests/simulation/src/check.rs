//! What must hold after every turn, seen from outside;
//! [`Agent::assert_invariants`](agent::agent::Agent::assert_invariants) is the view from inside.

use agent::agent::state::State;
use agent::agent::{Headers, LISTENER_BACKOFF, Stream};

use crate::guest::Guest;
use crate::kernel::{Far, Source};

impl Guest {
    /// Panics with what does not hold.
    pub fn check(&self) {
        self.agent.assert_invariants();
        self.check_queues();
        self.check_connections();
        self.check_outputs();
        self.check_inputs();
        self.check_question();
    }

    /// A request to the metadata service has a time limit, and none is open while the guest is
    /// quiesced.
    fn check_question(&self) {
        if self.question.is_some() {
            assert!(
                self.agent.poll_timeout().is_some(),
                "a request to the metadata service has no time limit"
            );
            let state = self.agent.state();
            assert!(self.is_watching && state != State::Quiesced, "{state:?}");
        }
    }

    /// Whether the loop comes back to a source by itself.
    fn is_expected(&self, source: Source) -> bool {
        self.kernel.events.contains(&source) || self.ready.contains(&source)
    }

    /// Waiting connections will be accepted: there is an event, or a deadline for another try.
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

    /// An open connection is known to the core, is registered for what the core wants, and no byte
    /// waits for an edge that will not come.
    fn check_connections(&self) {
        for (id, (number, is_unread)) in &self.connections {
            let wanted = self.agent.interest(*id);
            let wanted = wanted.unwrap_or_else(|| panic!("{id} is open and unknown to the core"));
            let mut headers = Headers::default();
            let has_pending = !self.agent.pending(*id, &mut headers).is_empty();
            assert_eq!(
                wanted.writable, has_pending,
                "{id} is registered for writing nothing"
            );
            let wire = &self.kernel.wires[*number];
            let is_wanted = wanted.readable || wanted.writable;
            let registered = is_wanted.then_some((wanted.readable, wanted.writable));
            assert_eq!(wire.registered, registered, "{id} is registered wrongly");
            if self.is_expected(Source::Connection(*id)) || wire.far != Far::Open {
                continue;
            }
            let has_room = wire.to_host.len() < wire.capacity;
            assert!(
                !has_pending || !has_room,
                "{id} has answers that are not written"
            );
            let is_readable = wanted.readable && !wire.to_guest.is_empty();
            assert!(
                !is_readable,
                "{id} has requests that are not read ({is_unread})"
            );
        }
    }

    /// Output is left unread only for lack of room, and the core knows that it has to resume.
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
                    assert!(is_stalled, "{stream:?} of {id} is not read any more");
                }
            }
        }
    }

    /// Input is left unwritten only when the command's pipe is full.
    fn check_inputs(&self) {
        for (id, stdio) in &self.stdio {
            let Some(number) = stdio.pipes[crate::pattern::INPUT] else {
                continue;
            };
            let pipe = &self.kernel.pipes[number];
            let is_stuck = !self.agent.input_pending(*id).is_empty()
                && (pipe.len < pipe.capacity || pipe.holders == 0)
                && !self.is_expected(Source::Input(*id));
            assert!(!is_stuck, "input of {id} is not written any more");
        }
    }
}
