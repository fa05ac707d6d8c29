//! Subjects that take turns within a run: A B C, B C A, C A B, … A disturbance of the machine then
//! meets all of them.

use crate::Failure;

/// What is measured: a function that is called once a round and returns the samples of the round.
pub(crate) struct Subject<'a, T = f64> {
    name: &'static str,
    run: Box<dyn FnMut() -> Result<Vec<T>, Failure> + 'a>,
    samples: Vec<T>,
}

impl<'a, T> Subject<'a, T> {
    pub(crate) fn new(
        name: &'static str,
        run: impl FnMut() -> Result<Vec<T>, Failure> + 'a,
    ) -> Self {
        Self {
            name,
            run: Box::new(run),
            samples: Vec::new(),
        }
    }
}

/// A subject and its samples, or why there are none.
pub(crate) type Outcome<T = f64> = (&'static str, Result<Vec<T>, Failure>);

/// Runs every subject once a round and returns the samples of all rounds but the first, which warms
/// up caches. A subject that failed is not called again.
pub(crate) fn interleave<T>(count: usize, mut subjects: Vec<Subject<'_, T>>) -> Vec<Outcome<T>> {
    let mut failed = Vec::new();
    for round in 0..=count {
        if round > 0 && !subjects.is_empty() {
            subjects.rotate_left(1);
        }
        let mut index = 0;
        while let Some(subject) = subjects.get_mut(index) {
            match (subject.run)() {
                Ok(samples) => {
                    if round > 0 {
                        subject.samples.extend(samples);
                    }
                    index += 1;
                }
                Err(failure) => failed.push((subjects.remove(index).name, Err(failure))),
            }
        }
    }
    let measured = subjects
        .into_iter()
        .map(|subject| (subject.name, Ok(subject.samples)));
    let mut outcomes: Vec<Outcome<T>> = measured.chain(failed).collect();
    outcomes.sort_by_key(|(name, _)| *name);
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn every_subject_is_measured_in_every_round_and_a_failure_affects_no_other() {
        let calls = RefCell::new(String::new());
        let subject = |name: &'static str, limit: usize| {
            let calls = &calls;
            let mut count = 0;
            Subject::new(name, move || {
                calls.borrow_mut().push_str(name);
                count += 1;
                if count > limit {
                    return Err("enough".into());
                }
                Ok(vec![1.0, 2.0])
            })
        };
        let outcomes = interleave(2, vec![subject("a", 9), subject("b", 9), subject("c", 1)]);
        let [(_, Ok(a)), (_, Ok(b)), (_, Err(_))] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!(
            (a.len(), b.len()),
            (4, 4),
            "two rounds, the first is dropped"
        );
        assert_eq!(calls.borrow().as_str(), "abcbcaab");
    }
}
