//! One read for all who want to know at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Shares a read among those who ask for it before it begins. Whoever asks while one is under
/// way waits for the next, since the answer may be older than the question.
#[derive(Debug)]
pub(super) struct Coalesced<T> {
    /// How many reads have begun.
    begun: AtomicU64,
    /// The last one that ended, with its number.
    last: Mutex<Option<(u64, T)>>,
}

impl<T> Default for Coalesced<T> {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: Mutex::new(None) }
    }
}

impl<T: Clone> Coalesced<T> {
    /// The outcome of a read that began after this call: `read`, or somebody else's.
    pub(super) async fn read(&self, read: impl Future<Output = T>) -> T {
        let begun_before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if let Some((number, outcome)) = &*last
            && *number > begun_before
        {
            return outcome.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let outcome = read.await;
        *last = Some((number, outcome.clone()));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    #[tokio::test]
    async fn those_who_ask_during_a_read_share_the_next_one() {
        let reads = Arc::new(Coalesced::default());
        let (begun, mut beginnings) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let ask = |number: u32| {
            let (reads, begun, gate) = (Arc::clone(&reads), begun.clone(), Arc::clone(&gate));
            tokio::spawn(async move {
                reads
                    .read(async {
                        begun.send(number).unwrap();
                        gate.acquire().await.unwrap().forget();
                        number
                    })
                    .await
            })
        };
        let first = ask(1);
        assert_eq!(beginnings.recv().await, Some(1));
        let later = [ask(2), ask(3), ask(4)];
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }

        gate.add_permits(9);

        assert_eq!(first.await.unwrap(), 1);
        let mut answers = Vec::new();
        for asked in later {
            answers.push(asked.await.unwrap());
        }
        assert_eq!(answers, [answers[0]; 3]);
        assert_eq!(gate.available_permits(), 7);
        assert!((2..=4).contains(&answers[0]));
    }

    #[tokio::test]
    async fn a_question_after_a_read_is_asked_anew() {
        let reads = Coalesced::default();

        assert_eq!(reads.read(async { 1 }).await, 1);
        assert_eq!(reads.read(async { 2 }).await, 2);
    }
}
