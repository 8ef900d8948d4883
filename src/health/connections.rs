use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

/// A bounded number of connections, each with a time limit from its beginning to its end.
///
/// Where one too many comes, the oldest ends: whoever asks properly is served in milliseconds, so
/// that one which is still there belongs to a client that hangs, or means harm.
pub(super) struct Connections {
    pub(super) listener: TcpListener,
    pub(super) most: usize,
    pub(super) limit: Duration,
    /// From the oldest; each ends its connection when it is dropped.
    pub(super) open: VecDeque<oneshot::Sender<()>>,
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        self.open.retain(|connection| !connection.is_closed());
        while self.open.len() >= self.most {
            self.open.pop_front();
        }
        let (keep, ended) = oneshot::channel();
        self.open.push_back(keep);
        let limit = self.limit;
        let end = Box::pin(async move {
            let _ = timeout(limit, ended).await;
        });
        (Connection { stream, end, ended: false }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends at its time.
pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl Connection {
    fn goes_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.ended = self.ended || self.end.as_mut().poll(context).is_ready();
        if self.ended { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{Instant, sleep},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    async fn server(most: usize, limit: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections { listener, most, limit, open: VecDeque::new() };
        let big = || async { "x".repeat(64 << 20) };
        let router = Router::new().route("/", get(async || "fine")).route("/big", get(big));
        tokio::spawn(async move { axum::serve(connections, router).await });
        address
    }

    async fn asked(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// How long it takes until the other side has hung up.
    async fn hung_up(stream: &mut TcpStream) -> Duration {
        let began = Instant::now();
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.unwrap();
        began.elapsed()
    }

    #[tokio::test]
    async fn who_says_nothing_or_not_enough_is_hung_up_on() {
        let address = server(8, LIMIT).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(hung_up(&mut silent).await >= LIMIT / 2);
        // A byte now and then gives no new time.
        let mut slow = TcpStream::connect(address).await.unwrap();
        let began = Instant::now();
        for byte in REQUEST {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(LIMIT / 10).await;
        }
        assert!(began.elapsed() < LIMIT * 5, "it could say everything");
        assert!(asked(address).await.ends_with("fine"));
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_is_hung_up_on() {
        let address = server(8, LIMIT).await;
        let mut deaf = TcpStream::connect(address).await.unwrap();
        deaf.write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        sleep(LIMIT * 3).await;
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(20), deaf.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.len() < 64 << 20, "all of it was sent");
    }

    #[tokio::test]
    async fn one_too_many_ends_the_oldest() {
        let address = server(3, Duration::from_mins(1)).await;
        let mut idle = Vec::new();
        for _ in 0..3 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(asked(address).await.ends_with("fine"));
        assert!(hung_up(&mut idle[0]).await < Duration::from_secs(10));
        // The others are still served.
        for stream in &mut idle[1..] {
            stream.write_all(REQUEST).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("fine"), "{answer}");
        }
    }
}
