//! Closing a connection so that its client gets the answer.
//!
//! A request can be answered before its body was read, such as one that is too large. If the connection were closed then, the
//! system would reset it as soon as more of the body arrives, and the answer could be lost on its way. Proxies report such
//! answers as faults of the server. So the server says that it closes the connection, ends its own side, and reads what the
//! client still sends, for a while.

use axum::Router;
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tower::Service;

/// Whether a part of the body of a connection's latest request has not been read. Clones are of the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// A body that says here when it has been read.
    fn watch(&self, body: Incoming) -> Watched {
        self.set(!body.is_end_stream());
        Watched { body, unread: self.clone() }
    }

    fn set(&self, is_unread: bool) {
        self.0.store(is_unread, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The routes, which say in an answer that the connection is closed after it if the body has not been read.
#[derive(Debug, Clone)]
pub(crate) struct Watching {
    pub(crate) routes: Router,
    pub(crate) unread: Unread,
}

impl Service<Request<Incoming>> for Watching {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Watched>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let unread = self.unread.clone();
        let answering = self.routes.call(request.map(|body| unread.watch(body)));
        Box::pin(async move {
            let mut answer = answering.await?;
            if unread.get() {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        })
    }
}

/// The body of a request.
#[derive(Debug)]
struct Watched {
    body: Incoming,
    unread: Unread,
}

impl Body for Watched {
    type Data = <Incoming as Body>::Data;
    type Error = <Incoming as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.unread.set(false);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that reads what is left of a body after its own side has ended, for `longest` at most.
#[derive(Debug)]
pub(crate) struct Lingering<S> {
    stream: S,
    unread: Unread,
    longest: Duration,
    /// Since the own side has ended.
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> Lingering<S> {
    pub(crate) fn new(stream: S, unread: Unread, longest: Duration) -> Self {
        Self { stream, unread, longest, end: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        if !this.unread.get() {
            return Poll::Ready(Ok(()));
        }
        let end = this.end.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.longest)));
        let mut bytes = [0; 8 << 10];
        while end.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            // A client that has gone does not need the answer.
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn alone<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(work)
    }

    #[test]
    fn a_rest_is_read_before_the_end() {
        alone(async {
            let (mut client, server) = tokio::io::duplex(16);
            let unread = Unread::default();
            unread.set(true);
            let mut server = Lingering::new(server, unread, Duration::from_secs(5));
            let closing = tokio::spawn(async move { server.shutdown().await });
            client.write_all(&[1; 100_000]).await.expect("all is read");
            assert_eq!(client.read(&mut [0]).await.expect("an end"), 0);
            drop(client);
            closing.await.expect("no panic").expect("it ends");
        });
    }

    #[test]
    fn a_client_that_never_ends_is_left() {
        alone(async {
            let (_client, server) = tokio::io::duplex(16);
            let (unread, longest) = (Unread::default(), Duration::from_millis(20));
            unread.set(true);
            let began = Instant::now();
            Lingering::new(server, unread, longest).shutdown().await.expect("it ends");
            assert!(began.elapsed() >= longest);
        });
    }

    #[test]
    fn nothing_is_awaited_after_a_body_that_was_read() {
        alone(async {
            let (_client, server) = tokio::io::duplex(16);
            let (began, longest) = (Instant::now(), Duration::from_secs(600));
            Lingering::new(server, Unread::default(), longest).shutdown().await.expect("it ends");
            assert!(began.elapsed() < longest);
        });
    }
}
