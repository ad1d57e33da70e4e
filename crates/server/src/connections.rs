//! Accepting connections, with limits on what a client may keep busy.

use crate::config::Limits;
use crate::lingering::{Lingering, Unread, Watching};
use axum::Router;
use hyper::server::conn::http1::UpgradeableConnection;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

/// The most bytes of the headers of a request.
const MOST_HEADERS: usize = 32 << 10;
/// How long nothing is accepted after the system has run out of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `ending` is true, and then waits for requests that are being answered, for a while.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: &Limits,
    mut ending: watch::Receiver<bool>,
) {
    let free = Arc::new(Semaphore::new(limits.connections));
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&free).acquire_owned() => permit,
            () = until(&mut ending) => break,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = until(&mut ending) => break,
        };
        let stream = match accepted {
            Ok((stream, _address)) => stream,
            Err(error) => {
                // A connection that was closed again concerns nobody else. Too many open files pass.
                let is_of_client =
                    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset);
                if !is_of_client {
                    tracing::warn!("no connection is accepted for a moment: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
        };
        let connection = connection(stream, routes.clone(), limits);
        let mut ending = ending.clone();
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => Some(ended),
                () = until(&mut ending) => None,
            };
            let ended = match ended {
                Some(ended) => ended,
                None => {
                    // It ends after the request that is being answered, or now if there is none.
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
    drop(listener);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    if tokio::time::timeout(limits.drain, free.acquire_many(all)).await.is_err() {
        tracing::warn!("requests that were not answered within {} s are dropped", limits.drain.as_secs());
    }
}

async fn until(ending: &mut watch::Receiver<bool>) {
    // An error means that the server is gone.
    let _ = ending.wait_for(|is_ending| *is_ending).await;
}

type Served = UpgradeableConnection<
    TokioIo<Lingering<Pin<Box<TimeoutStream<TcpStream>>>>>,
    TowerToHyperService<Watching>,
>;

fn connection(stream: TcpStream, routes: Router, limits: &Limits) -> Served {
    // Small answers and events are sent at once. A socket that cannot do it is still served.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.stalled));
    let unread = Unread::default();
    let stream = Lingering::new(Box::pin(stream), unread.clone(), limits.rest);
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(Watching { routes, unread }))
        .with_upgrades()
}
