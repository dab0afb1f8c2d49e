//! What happens, for whoever listens: first what is kept, then what comes.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast;

use crate::Flow;
use crate::failure::{Failure, Kind};

/// What of it is wanted. Whoever is too slow is told to ask again, by the words of `again`.
pub fn flow<T: Clone + Send + Sync + 'static>(
    past: Vec<Arc<T>>,
    live: Option<broadcast::Receiver<Arc<T>>>,
    again: &'static str,
    wanted: impl Fn(&T) -> bool + Send + 'static,
) -> Flow<T> {
    let past = stream::iter(past.into_iter().map(Ok));
    let all = past.chain(follow(live, again));
    let fits = move |event: &Result<Arc<T>, Failure>| event.as_ref().map_or(true, |e| wanted(e));
    let owned = |event: Result<Arc<T>, Failure>| event.map(|event| (*event).clone());
    all.filter(move |event| std::future::ready(fits(event))).map(owned).boxed()
}

fn follow<T: Clone + Send + 'static>(
    live: Option<broadcast::Receiver<T>>,
    again: &'static str,
) -> impl Stream<Item = Result<T, Failure>> + Send {
    stream::unfold(live, move |live| async move {
        let mut live = live?;
        match live.recv().await {
            Ok(event) => Some((Ok(event), Some(live))),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let words = format!("{missed} events were not taken in time: {again}");
                Some((Err(Failure::new(Kind::OutOfRange, words)), None))
            }
        }
    })
}
