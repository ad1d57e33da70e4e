//! Giving an order from a command, whether or not an owner runs.

use super::owned::Purpose;
use super::types::{Answer, JobOrder};
use super::{OwnedStore, Store, lease};
use crate::Error;
use runtime::scheduler::JobId;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the answer is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The number of the order.
    pub order: u64,
    /// The answer; `None` if the owner has not given one yet. It will follow the order when it can.
    pub answer: Option<Answer>,
    /// What was repaired in the store.
    pub notes: Vec<String>,
}

/// Gives an order about a job. If no owner runs, this process becomes the owner for a moment and carries it out, with all
/// others that wait; else it waits for the answer of the owner for up to `wait`.
///
/// # Errors
/// There is no such job, the order does not suit its state, or the store cannot be read or written.
pub fn give(folder: &Path, id: JobId, order: &JobOrder, wait: Duration) -> Result<Given, Error> {
    let deadline = Instant::now() + wait;
    let mut notes = Vec::new();
    let mut store = match Store::open(folder) {
        Err(Error::Damaged { .. }) => {
            notes.extend(OwnedStore::open_for(folder, Purpose::CarryOut)?.1);
            Store::open(folder)?
        }
        store => store?,
    };
    let mut number = store.order(id, order)?;
    loop {
        let answer = store.answer(number)?;
        if answer.is_some() || Instant::now() >= deadline {
            return Ok(Given { order: number, answer, notes });
        }
        if lease::is_owned(&store.layout) {
            std::thread::sleep(LOOK_EVERY);
            continue;
        }
        match OwnedStore::open_for(folder, Purpose::CarryOut) {
            Ok((mut owner, said)) => {
                notes.extend(said);
                if !store.database.is_current() {
                    // The order was lost with the database.
                    store = Store::open(folder)?;
                    number = store.order(id, order)?;
                }
                for order in owner.orders()? {
                    owner.carry_out(&order)?;
                }
                return Ok(Given { order: number, answer: owner.store().answer(number)?, notes });
            }
            Err(Error::Owned { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{nothing, outcome, request, scratch};
    use super::super::types::State;
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn without_an_owner_the_order_is_carried_out_at_once() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        store.submit(vec![request("a")], &mut nothing).unwrap();
        let given = give(folder.path(), JobId(1), &JobOrder::Cancel, Duration::from_secs(1)).unwrap();
        assert_eq!((given.answer, given.notes), (Some(Answer::Done), Vec::new()));
        assert_eq!(store.job(JobId(1)).unwrap().state, State::Cancelled);
        assert!(store.lease().unwrap().is_none());
        let error = give(folder.path(), JobId(1), &JobOrder::Cancel, LONG).unwrap_err();
        assert!(matches!(error, Error::Unsuitable { state: State::Cancelled, .. }), "{error}");
        assert!(matches!(give(folder.path(), JobId(2), &JobOrder::Cancel, LONG), Err(Error::NoJob { .. })));
    }

    #[test]
    fn an_owner_answers_and_one_that_ends_leaves_the_order_to_the_command() {
        let folder = scratch();
        let mut store = Store::open(folder.path()).unwrap();
        store.submit(vec![request("a"), request("b")], &mut nothing).unwrap();
        let (mut owner, _) = OwnedStore::open(folder.path()).unwrap();
        owner.begin(JobId(1)).unwrap();
        let path = folder.path();
        let answers = std::thread::scope(|scope| {
            let first = scope.spawn(|| give(path, JobId(1), &JobOrder::Cancel, LONG).unwrap());
            let order = loop {
                if let Some(order) = owner.orders().unwrap().pop() {
                    break order;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert!(owner.has_changed().unwrap());
            assert!(owner.carry_out(&order).is_err());
            owner.finish(JobId(1), &outcome(State::Cancelled, 3)).unwrap();
            owner.answer(order.number, &Answer::Done).unwrap();
            let second = scope.spawn(|| give(path, JobId(2), &JobOrder::Cancel, LONG).unwrap());
            while owner.orders().unwrap().is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(owner);
            [first, second].map(|thread| thread.join().unwrap().answer)
        });
        assert_eq!(answers, [Some(Answer::Done), Some(Answer::Done)]);
        assert_eq!(store.job(JobId(2)).unwrap().state, State::Cancelled);
    }

    #[test]
    fn an_owner_that_does_not_answer_is_waited_for_no_longer_than_asked() {
        let folder = scratch();
        Store::open(folder.path()).unwrap().submit(vec![request("a")], &mut nothing).unwrap();
        let (owner, _) = OwnedStore::open(folder.path()).unwrap();
        let given = give(folder.path(), JobId(1), &JobOrder::Cancel, Duration::from_millis(10)).unwrap();
        assert_eq!(given.answer, None);
        assert_eq!(owner.orders().unwrap()[0].number, given.order);
    }

    #[test]
    fn a_damaged_store_is_repaired_before_the_order_is_carried_out() {
        let folder = scratch();
        Store::open(folder.path()).unwrap().submit(vec![request("a")], &mut nothing).unwrap();
        std::fs::remove_file(folder.path().join("jobs.db")).unwrap();
        let given = give(folder.path(), JobId(1), &JobOrder::Cancel, LONG).unwrap();
        assert_eq!(given.answer, Some(Answer::Done));
        assert!(given.notes[0].contains("damaged-1"), "{:?}", given.notes);
    }
}
