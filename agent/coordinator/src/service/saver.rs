//! The thread that writes down what the cluster has decided: several steps in one transaction where they come faster
//! than the disk.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::metrics::Numbers;
use crate::cluster::Change;
use crate::state::{Error, State};

/// Steps in one transaction: it must not become so large that all wait for it.
const TOGETHER: usize = 1024;

#[derive(Debug)]
struct Order {
    /// Of the core; absent: of nobody but who waits for `done`.
    revision: Option<u64>,
    changes: Vec<Change>,
    done: Option<oneshot::Sender<()>>,
}

/// What the thread says.
pub(super) type News = Result<u64, Error>;

#[derive(Debug)]
pub(super) struct Saver {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    pub(super) fn start(
        store: State,
        numbers: Numbers,
    ) -> std::io::Result<(Self, mpsc::UnboundedReceiver<News>)> {
        let (orders, received) = channel();
        let (tell, news) = mpsc::unbounded_channel();
        let thread = Builder::new()
            .name("save".to_owned())
            .spawn(move || write(&store, &received, &tell, &numbers))?;
        Ok((Self { orders: Some(orders), thread: Some(thread) }, news))
    }

    pub(super) fn save(&self, revision: u64, changes: Vec<Change>) {
        self.order(Order { revision: Some(revision), changes, done: None });
    }

    /// What the core does not know of. The answer comes when it is on the disk.
    pub(super) fn save_aside(&self, changes: Vec<Change>) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.order(Order { revision: None, changes, done: Some(done) });
        answer
    }

    fn order(&self, order: Order) {
        // A thread that is gone has said why.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Saver {
    /// What was ordered is written: the file is free for the next one after that.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(
    store: &State,
    orders: &Receiver<Order>,
    tell: &mpsc::UnboundedSender<News>,
    numbers: &Numbers,
) {
    while let Ok(first) = orders.recv() {
        let mut all = vec![first];
        all.extend(orders.try_iter().take(TOGETHER));
        let begin = Instant::now();
        let saved = store.save(all.iter().flat_map(|order| &order.changes));
        numbers.save_took(begin.elapsed());
        if let Err(error) = saved {
            // Nothing that depends on it may be said any more, by anybody.
            let _ = tell.send(Err(error));
            return;
        }
        let revision = all.iter().filter_map(|order| order.revision).max();
        for done in all.into_iter().filter_map(|order| order.done) {
            let _ = done.send(());
        }
        if let Some(revision) = revision {
            let _ = tell.send(Ok(revision));
        }
    }
}
