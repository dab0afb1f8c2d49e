//! Connections: bounded, served, and let go.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::caller::{Caller, Seat, Seats};

/// A client that has said nothing whole by then is let go.
pub const FIRST_WORDS: Duration = Duration::from_secs(10);
/// Of a client that is there but does not answer.
const PING: Duration = Duration::from_secs(30);
/// After accept has failed: most likely we have no more descriptors, and spinning gives none back.
const BREATH: Duration = Duration::from_millis(100);
const HEADER_BYTES: u32 = 32 << 10;
const HEADERS: usize = 64;

/// What each connection needs.
#[derive(Debug, Clone)]
pub struct Host {
    seats: Seats,
    /// Of one connection, each of which may hold a message of the longest.
    streams: u32,
    ending: watch::Receiver<()>,
}

impl Host {
    /// Connections are asked to end when something comes from `ending`.
    #[must_use]
    pub const fn new(seats: Seats, streams: u32, ending: watch::Receiver<()>) -> Self {
        Self { seats, streams, ending }
    }

    /// For one connection of this caller, if there are not too many.
    #[must_use]
    pub fn seat(&self, caller: &Caller) -> Option<Seat> {
        let seat = self.seats.take(caller.party());
        if seat.is_none() {
            tracing::debug!(%caller, "too many connections");
        }
        seat
    }

    /// Serve one connection until it ends.
    pub async fn attend<S, A, F>(self, stream: S, _seat: Seat, answer: A)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let Self { streams, mut ending, .. } = self;
        let said = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&said);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            heard.store(true, Ordering::Relaxed);
            answer(request)
        });
        let builder = builder(streams);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        // The connection is kept, and its end is what we wait for.
        let end = tokio::select! {
            end = connection.as_mut() => Some(end),
            () = silence(&said) => return,
            _ = ending.changed() => None,
        };
        let end = match end {
            Some(end) => end,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = end {
            tracing::debug!("connection: {e}");
        }
    }
}

/// Returns only where nothing whole was said in time.
async fn silence(said: &AtomicBool) {
    sleep(FIRST_WORDS).await;
    if said.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// After accept has failed.
pub async fn rest(error: &io::Error) {
    tracing::warn!("accept: {error}");
    sleep(BREATH).await;
}

fn builder(streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(FIRST_WORDS)
        .max_headers(HEADERS)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(streams)
        .max_header_list_size(HEADER_BYTES);
    builder
}
