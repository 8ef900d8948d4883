//! The Cinder client against what stands in Cinder's place when it is away: nobody, something that
//! never answers, something that answers nonsense.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use attachd::{
    cinder::{Auth, BlockStorage, CinderError, Client, ClientConfig},
    model::{AccessMode, AttachmentId, Retry, VolumeId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Time limit of one request here.
const LIMIT: Duration = Duration::from_millis(400);

/// A call ends within twice the limit; the machines are noisy.
const GENEROUS: Duration = Duration::from_secs(20);

fn volume() -> VolumeId {
    "7a29c609-53cc-4134-830f-6d08a0b9da91".parse().unwrap()
}

fn attachment() -> AttachmentId {
    "f0fa358c-fa3f-4cfd-84cb-c160f82fceed".parse().unwrap()
}

fn client(address: SocketAddr) -> Client {
    let auth = Auth::no_auth(&format!("http://{address}"), "c0ffee", "admin").unwrap();
    let config = ClientConfig {
        connect_timeout: LIMIT,
        request_timeout: LIMIT,
        export_timeout: LIMIT,
        first_pause: Duration::from_millis(1),
        ..ClientConfig::default()
    };
    Client::new(auth, config).unwrap()
}

/// A server that reads each request and does something with the connection.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Server {
    async fn that<F>(act: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    counter.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(act(stream));
                }
            }
        });
        Self { address, requests }
    }

    /// Writes that and closes.
    async fn that_says(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Arc::new(bytes.into());
        Self::that(move |mut stream| {
            let bytes = Arc::clone(&bytes);
            async move {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            }
        })
        .await
    }

    async fn that_answers(status: &str, body: &str) -> Self {
        let length = body.len();
        Self::that_says(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"))
            .await
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Asks for the volume, and gives the error.
async fn ask(address: SocketAddr) -> CinderError {
    let started = Instant::now();
    let error = client(address).volume(volume()).await.unwrap_err();
    assert!(started.elapsed() < GENEROUS, "{:?}", started.elapsed());
    error
}

#[tokio::test]
async fn nobody_there_is_unreachable_after_a_few_tries_and_names_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = ask(address).await;
    assert!(matches!(error, CinderError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert_eq!(error.retry(), Retry::Backoff);
    let reserve = client(address).reserve(volume(), None, AccessMode::Rw).await.unwrap_err();
    assert!(reserve.nothing_was_created());
}

#[tokio::test]
async fn a_cause_is_in_the_chain_and_not_in_the_message() {
    let error = ask(Server::that_says("").await.address).await;
    let source = error.source().expect("reqwest's error").to_string();
    assert!(!error.to_string().contains(&source), "{error} / {source}");
    assert!(!source.contains("http://"), "the address is said once: {source}");
}

#[tokio::test]
async fn a_cinder_that_never_answers_is_given_up_within_the_limit() {
    let server = Server::that(|stream| async {
        tokio::time::sleep(GENEROUS * 2).await;
        drop(stream);
    })
    .await;
    let error = ask(server.address).await;
    let CinderError::TimedOut { request_id, .. } = &error else { panic!("{error:?}") };
    assert!(request_id.starts_with("req-") && error.to_string().contains(request_id), "{error}");
    assert!(server.requests() <= 2, "a call ends within twice the limit");
    let before = server.requests();
    let error = client(server.address).reserve(volume(), None, AccessMode::Rw).await.unwrap_err();
    assert!(matches!(error, CinderError::TimedOut { .. }), "{error:?}");
    assert!(!error.nothing_was_created(), "the reservation may be there");
    assert_eq!(server.requests(), before + 1, "and was asked for once");
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up_within_the_limit() {
    let server = Server::that(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{").await;
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(LIMIT / 10).await;
        }
    })
    .await;
    let error = ask(server.address).await;
    assert!(matches!(error, CinderError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_closes_is_tried_again_but_a_reservation_is_not() {
    for bytes in
        ["", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"volume\": {\"id\"", "garbage"]
    {
        let server = Server::that_says(bytes).await;
        let error = ask(server.address).await;
        assert!(matches!(error, CinderError::Disconnected { .. }), "{bytes:?}: {error:?}");
        assert_eq!((error.retry(), server.requests()), (Retry::Backoff, 3), "{bytes:?}");
        let server = Server::that_says(bytes).await;
        let error =
            client(server.address).reserve(volume(), None, AccessMode::Rw).await.unwrap_err();
        assert!(!error.nothing_was_created(), "{bytes:?}: {error:?}");
        assert_eq!(server.requests(), 1, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_cinder_that_comes_back_between_two_tries_is_not_even_noticed() {
    let tries = Arc::new(AtomicUsize::new(0));
    let server = Server::that(move |mut stream| {
        let earlier = tries.fetch_add(1, Ordering::SeqCst);
        async move {
            if earlier > 0 {
                let body = format!(r#"{{"volume": {{"id": "{}", "name": null, "status": "available", "size": 1}}}}"#, volume());
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let found = client(server.address).volume(volume()).await.unwrap().unwrap();
    assert_eq!((found.status.as_str(), server.requests()), ("available", 2));
}

#[tokio::test]
async fn answers_that_are_not_cinders_are_nonsense_and_say_what_they_look_like() {
    for (status, body, looks) in [
        ("200 OK", "<html>welcome</html>", "an HTML page"),
        ("200 OK", "{\"volume\": {\"id\": \"7a2", "cut off"),
        ("200 OK", "", "no body"),
        ("200 OK", "hello", "not JSON"),
        ("200 OK", "{\"volume\": {}}", "missing field `id`"),
        ("200 OK", "{\"volume\": 7}", "another type"),
        ("404 Not Found", "<html>nothing here</html>", "an HTML page"),
        ("404 Not Found", "default backend - 404", "not JSON"),
        ("302 Found\r\nLocation: http://127.0.0.1:1/login", "", "redirects to"),
        ("400 Bad Request", "<html>", "an HTML page"),
    ] {
        let server = Server::that_answers(status, body).await;
        let error = ask(server.address).await;
        assert!(matches!(error, CinderError::Nonsense { .. }), "{status} {body}: {error:?}");
        assert!(error.to_string().contains(looks), "{status} {body}: {error}");
        assert_eq!(error.retry(), Retry::Backoff);
    }
}

#[tokio::test]
async fn nothing_but_cinders_own_word_makes_a_delete_or_a_complete_done() {
    for (status, body) in [
        ("200 OK", "<html>welcome</html>"),
        ("200 OK", ""),
        ("200 OK", "{}"),
        ("404 Not Found", "<html>nothing here</html>"),
        ("404 Not Found", ""),
        ("302 Found", ""),
    ] {
        let server = Server::that_answers(status, body).await;
        let error = client(server.address).delete(attachment()).await.unwrap_err();
        assert!(matches!(error, CinderError::Nonsense { .. }), "{status} {body}: {error:?}");
        if !body.is_empty() || !status.starts_with('2') {
            client(server.address).complete(attachment()).await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn a_body_without_end_is_not_read_to_its_end() {
    let server = Server::that(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n").await;
        let block = vec![b' '; 1 << 16];
        while stream.write_all(&block).await.is_ok() {}
    })
    .await;
    let auth = Auth::no_auth(&format!("http://{}", server.address), "c0ffee", "admin").unwrap();
    let cinder = Client::new(auth, ClientConfig::default()).unwrap();
    let error = cinder.volume(volume()).await.unwrap_err();
    assert!(error.to_string().contains("longer than attachd reads"), "{error}");
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let server = Server::that(|mut stream| async move {
        let body = format!(
            r#"{{"volume": {{"id": "{}", "name": "", "status": "available", "size": 1}}}}"#,
            volume()
        );
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut head = [0; 4096];
        while stream.write_all(answer.as_bytes()).await.is_ok() {
            if !stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                break;
            }
        }
    })
    .await;
    let cinder = client(server.address);
    for _ in 0..5 {
        cinder.volume(volume()).await.unwrap().unwrap();
    }
    assert_eq!(server.requests(), 1, "this server counts connections");
}
