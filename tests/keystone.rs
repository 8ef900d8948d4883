//! Keystone and the token: one for all callers, renewed on time and when it is refused, and what
//! becomes of it where Keystone is away or Cinder is not where the catalog should have it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use attachd::{
    cinder::{
        Asked, Auth, BlockStorage, CinderError, Client, ClientConfig, Heard, Watch, service_types,
    },
    http::Tls,
    keystone::{
        Credentials, Domain, Interface, KeystoneError, Method, Project, Reload, Scope, Session,
        SessionConfig, User, Wanted,
    },
    model::{AccessMode, Retry, Secret, VolumeId},
};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, Request, Respond, ResponseTemplate,
    matchers::{any, header},
};

const PROJECT: &str = "f0638703cdde47e8a50265db31c5f5b8";
const HOUR: i64 = 3600;

fn volume() -> VolumeId {
    "67016d2e-2597-4607-9e38-090cb7c7b113".parse().unwrap()
}

/// A cloud: Keystone below `/identity`, Cinder below `/volume`.
struct Cloud {
    server: MockServer,
    state: Arc<State>,
}

struct State {
    password: Mutex<String>,
    roles: Mutex<Vec<&'static str>>,
    /// How long tokens live, in seconds.
    life: Mutex<i64>,
    /// Cinder's address in the catalog, after the server's.
    endpoint: Mutex<String>,
    /// Instead of a token.
    trouble: Mutex<Option<ResponseTemplate>>,
    /// How long Keystone thinks.
    slowness: Mutex<Duration>,
    /// Tokens that Cinder takes.
    good: Mutex<BTreeSet<String>>,
    made: AtomicUsize,
    asked: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

struct Seen {
    path: String,
    token: String,
    service_token: Option<String>,
    status: u16,
}

struct Answers(Arc<State>);

impl Respond for Answers {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let base = format!("http://{}", request.headers["host"].to_str().unwrap());
        match request.url.path() {
            "/identity/v3/auth/tokens" => self.0.keystone(&base, request),
            _ => self.0.cinder(request),
        }
    }
}

fn fault(status: u16, name: &str, message: &str) -> ResponseTemplate {
    ResponseTemplate::new(status)
        .insert_header("x-openstack-request-id", "req-fault")
        .set_body_json(json!({name: {"code": status, "message": message}}))
}

impl State {
    fn keystone(&self, base: &str, request: &Request) -> ResponseTemplate {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let slowness = *self.slowness.lock().unwrap();
        if let Some(trouble) = self.trouble.lock().unwrap().clone() {
            return trouble.set_delay(slowness);
        }
        let body: Value = request.body_json().unwrap();
        let password = &body["auth"]["identity"]["password"]["user"]["password"];
        if *password != json!(*self.password.lock().unwrap()) {
            return fault(401, "error", "The request you have made requires authentication.");
        }
        let number = self.made.fetch_add(1, Ordering::SeqCst) + 1;
        let token = format!("gAAAAAB-token-{number}");
        self.good.lock().unwrap().insert(token.clone());
        let issued = Timestamp::now();
        let expires = issued + SignedDuration::from_secs(*self.life.lock().unwrap());
        let roles: Vec<Value> = self
            .roles
            .lock()
            .unwrap()
            .iter()
            .map(|name| json!({"id": name, "name": name}))
            .collect();
        let url = format!("{base}{}", self.endpoint.lock().unwrap());
        ResponseTemplate::new(201)
            .insert_header("x-subject-token", token.as_str())
            .set_delay(slowness)
            .set_body_json(json!({"token": {
                "methods": ["password"], "issued_at": issued.to_string(), "expires_at": expires.to_string(),
                "user": {"id": "u", "name": "demo"}, "roles": roles,
                "project": {"id": PROJECT, "name": "demo", "domain": {"id": "default", "name": "Default"}},
                "catalog": [
                    {"type": "identity", "name": "keystone", "endpoints": [
                        {"interface": "public", "region_id": "RegionOne", "url": format!("{base}/identity")}]},
                    {"type": "volumev2", "name": "cinder", "endpoints": [
                        {"interface": "public", "region_id": "RegionOne", "url": format!("{base}/old/v2/{PROJECT}")}]},
                    {"type": "volumev3", "name": "cinder", "endpoints": [
                        {"interface": "public", "region_id": "RegionOne", "url": url}]},
                ],
            }}))
    }

    fn cinder(&self, request: &Request) -> ResponseTemplate {
        let header =
            |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let token = header("x-auth-token").unwrap_or_default();
        let is_good = self.good.lock().unwrap().contains(&token);
        let status = if is_good { 200 } else { 401 };
        self.seen.lock().unwrap().push(Seen {
            path: request.url.path().to_owned(),
            token,
            service_token: header("x-service-token"),
            status,
        });
        if !is_good {
            return fault(401, "error", "The request you have made requires authentication.");
        }
        let body = if request.method == "POST" {
            json!({"attachment": {
                "id": "992f6e90-3455-46ee-8cd7-100e480de890", "status": "reserved", "instance": null,
                "volume_id": volume(), "attached_at": "", "detached_at": "", "attach_mode": "null",
                "connection_info": {}}})
        } else {
            json!({"volume": {"id": volume(), "name": "", "status": "available", "size": 1}})
        };
        ResponseTemplate::new(200)
            .insert_header("openstack-api-version", "volume 3.54")
            .set_body_json(body)
    }

    /// Cinder takes none of the tokens that were made so far.
    fn revoke(&self) {
        self.good.lock().unwrap().clear();
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn paths(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.path.clone()).collect()
    }

    fn statuses(&self) -> Vec<u16> {
        self.seen.lock().unwrap().iter().map(|seen| seen.status).collect()
    }
}

fn quick() -> SessionConfig {
    SessionConfig {
        request_timeout: Duration::from_secs(20),
        first_pause: Duration::from_millis(1),
        ..SessionConfig::default()
    }
}

fn credentials(auth_url: &str, password: &str) -> Credentials {
    Credentials {
        auth_url: auth_url.parse().unwrap(),
        method: Method::Password {
            user: User::Name {
                name: "demo".to_owned(),
                domain: Domain::Name("Default".to_owned()),
            },
            password: Secret::new(password.to_owned()),
        },
        scope: Scope::Project(Project::Id(PROJECT.to_owned())),
    }
}

fn wanted() -> Wanted {
    Wanted { types: service_types(None), region: None, interface: Interface::Public }
}

fn client_over(session: Session, wanted: Wanted, endpoint: Option<&str>) -> Client {
    let auth = Auth::keystone(Arc::new(session), wanted, endpoint).unwrap();
    let config = ClientConfig { first_pause: Duration::from_millis(1), ..ClientConfig::default() };
    Client::new(auth, config).unwrap()
}

impl Cloud {
    async fn up() -> Self {
        let state = Arc::new(State {
            password: Mutex::new("hunter2".to_owned()),
            roles: Mutex::new(vec!["member"]),
            life: Mutex::new(HOUR),
            endpoint: Mutex::new(format!("/volume/v3/{PROJECT}")),
            trouble: Mutex::default(),
            slowness: Mutex::default(),
            good: Mutex::default(),
            made: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            seen: Mutex::default(),
        });
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(Answers(Arc::clone(&state))).mount(&server).await;
        Self { server, state }
    }

    fn auth_url(&self) -> String {
        format!("{}/identity", self.server.uri())
    }

    fn session(&self, config: SessionConfig) -> Session {
        Session::new(credentials(&self.auth_url(), "hunter2"), None, config).unwrap()
    }

    fn client(&self) -> Client {
        client_over(self.session(quick()), wanted(), None)
    }
}

fn keystone_error(error: CinderError) -> Arc<KeystoneError> {
    assert!(error.nothing_was_created(), "{error:?}");
    match error {
        CinderError::Keystone(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_requests_on_a_token_that_ended_get_one_new_token_and_none_fails() {
    let cloud = Cloud::up().await;
    let client = cloud.client();
    client.volume(volume()).await.unwrap();
    cloud.state.revoke();
    *cloud.state.slowness.lock().unwrap() = Duration::from_millis(100);
    let all = join_all((0..50).map(|_| client.volume(volume()))).await;
    assert!(all.iter().all(Result::is_ok), "{:?}", all.iter().find(|one| one.is_err()));
    assert_eq!(cloud.state.made(), 2, "the first one, and one for all fifty");
    assert_eq!(cloud.state.asked(), 2);
    let statuses = cloud.state.statuses();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 51);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_first_requests_get_one_token() {
    let cloud = Cloud::up().await;
    *cloud.state.slowness.lock().unwrap() = Duration::from_millis(100);
    let client = cloud.client();
    let all = join_all((0..50).map(|_| client.volume(volume()))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!((cloud.state.made(), cloud.state.statuses()), (1, vec![200; 50]));
}

#[tokio::test]
async fn a_reservation_that_meets_a_401_is_repeated_once_with_another_token() {
    let cloud = Cloud::up().await;
    let client = cloud.client();
    client.volume(volume()).await.unwrap();
    cloud.state.revoke();
    client.reserve(volume(), None, AccessMode::Rw).await.unwrap();
    assert_eq!(cloud.state.statuses(), [200, 401, 200]);
    assert_eq!(cloud.state.made(), 2);
}

#[tokio::test]
async fn a_cinder_that_refuses_every_token_is_asked_twice_and_no_more() {
    let cloud = Cloud::up().await;
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(fault(401, "error", "no.")).mount(&server).await;
    let refusing =
        client_over(cloud.session(quick()), wanted(), Some(&format!("{}/volume", server.uri())));
    let error = refusing.volume(volume()).await.unwrap_err();
    assert!(matches!(error, CinderError::Unauthorized(_)), "{error:?}");
    assert_eq!(error.retry(), Retry::Backoff, "credentials and tokens are renewed");
    assert_eq!(server.received_requests().await.unwrap().len(), 2);
    assert_eq!(cloud.state.made(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let cloud = Cloud::up().await;
    // Its last quarter begins after three seconds.
    *cloud.state.life.lock().unwrap() = 4;
    let client = cloud.client();
    client.volume(volume()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    client.volume(volume()).await.unwrap();
    assert_eq!(cloud.state.made(), 2);
    assert_eq!(cloud.state.statuses(), [200, 200], "no request met a 401");
}

#[tokio::test]
async fn while_a_renewal_before_the_end_fails_the_old_token_serves() {
    let cloud = Cloud::up().await;
    *cloud.state.life.lock().unwrap() = 4;
    let client = client_over(cloud.session(SessionConfig { tries: 1, ..quick() }), wanted(), None);
    client.volume(volume()).await.unwrap();
    *cloud.state.trouble.lock().unwrap() = Some(fault(503, "error", "down"));
    let started = Instant::now();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let served = client.volume(volume()).await;
    // On a machine that stood still for a second the token has ended.
    assert!(served.is_ok() || started.elapsed() > Duration::from_millis(3900), "{served:?}");
    assert_eq!(cloud.state.asked(), 2, "a renewal was tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_tried_once_for_all_who_wait_and_not_again_at_once() {
    let cloud = Cloud::up().await;
    *cloud.state.password.lock().unwrap() = "another".to_owned();
    let client = cloud.client();
    let all = join_all((0..50).map(|_| client.volume(volume()))).await;
    assert_eq!(cloud.state.asked(), 1);
    for one in all {
        let error = keystone_error(one.unwrap_err());
        assert!(matches!(*error, KeystoneError::Unauthorized { .. }), "{error:?}");
        let text = error.to_string();
        for word in
            ["user \"demo\" (domain \"Default\")", PROJECT, "/identity/v3", "HTTP 401", "req-fault"]
        {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert_eq!(error.retry(), Retry::Backoff);
    }
    assert!(cloud.state.seen.lock().unwrap().is_empty(), "Cinder was asked without a token");
}

#[tokio::test]
async fn a_failure_is_not_for_ever() {
    let cloud = Cloud::up().await;
    *cloud.state.password.lock().unwrap() = "another".to_owned();
    let config = SessionConfig { first_rest: Duration::from_millis(50), ..quick() };
    let client = client_over(cloud.session(config), wanted(), None);
    client.volume(volume()).await.unwrap_err();
    *cloud.state.password.lock().unwrap() = "hunter2".to_owned();
    tokio::time::sleep(Duration::from_millis(60)).await;
    client.volume(volume()).await.unwrap();
}

#[tokio::test]
async fn a_rotated_password_is_read_anew_without_a_failed_request() {
    let cloud = Cloud::up().await;
    let written = Arc::new(Mutex::new("hunter2".to_owned()));
    let reads = Arc::new(AtomicUsize::new(0));
    let reload: Reload = {
        let (url, written, reads) = (cloud.auth_url(), Arc::clone(&written), Arc::clone(&reads));
        Arc::new(move || {
            reads.fetch_add(1, Ordering::SeqCst);
            Some(credentials(&url, &written.lock().unwrap()))
        })
    };
    let session =
        Session::new(credentials(&cloud.auth_url(), "hunter2"), Some(reload), quick()).unwrap();
    let client = client_over(session, wanted(), None);
    client.volume(volume()).await.unwrap();
    assert_eq!(reads.load(Ordering::SeqCst), 0, "read only where it is needed");
    *cloud.state.password.lock().unwrap() = "rotated".to_owned();
    "rotated".clone_into(&mut written.lock().unwrap());
    cloud.state.revoke();
    client.volume(volume()).await.unwrap();
    assert_eq!(cloud.state.asked(), 3, "the first, the refused, the new one");
}

#[tokio::test]
async fn a_keystone_in_trouble_is_asked_a_few_times_and_named() {
    for (trouble, asked, reason, word) in [
        (
            fault(500, "error", "An unexpected error"),
            1,
            "KeystoneFault",
            "An unexpected error (HTTP 500, req-fault)",
        ),
        (fault(503, "error", "down"), 3, "KeystoneFault", "HTTP 503"),
        (ResponseTemplate::new(502).set_body_string("<html>"), 3, "KeystoneFault", "HTTP 502"),
        (fault(429, "error", "slow down"), 3, "KeystoneFault", "HTTP 429"),
        (fault(403, "error", "locked"), 1, "KeystoneRefused", "locked"),
        (
            fault(400, "error", "'hunter2' is too short"),
            1,
            "KeystoneRefused",
            "'<redacted>' is too short",
        ),
        (
            ResponseTemplate::new(404).set_body_string("<html>"),
            1,
            "KeystoneNonsense",
            "no such address",
        ),
        (
            ResponseTemplate::new(400).set_body_string("<html>"),
            1,
            "KeystoneNonsense",
            "not Keystone's",
        ),
        (
            ResponseTemplate::new(301).insert_header("location", "https://sso"),
            1,
            "KeystoneNonsense",
            "https://sso",
        ),
        (
            ResponseTemplate::new(200).set_body_string("<html>"),
            1,
            "KeystoneNonsense",
            "X-Subject-Token",
        ),
        (
            ResponseTemplate::new(201)
                .insert_header("x-subject-token", "gAAAAAB-token-x")
                .set_body_string("{\"token\": 1}"),
            1,
            "KeystoneNonsense",
            "describes a token",
        ),
    ] {
        let cloud = Cloud::up().await;
        *cloud.state.trouble.lock().unwrap() = Some(trouble);
        let error = cloud.client().volume(volume()).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        let error = keystone_error(error);
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains(word) && shown.contains("/identity/v3/auth/tokens"),
            "{word}: {shown}"
        );
        assert!(!shown.contains("hunter2") && !shown.contains("gAAAAAB"), "{shown}");
        assert_eq!(cloud.state.asked(), asked, "{error}");
    }
}

#[tokio::test]
async fn a_keystone_that_is_away_or_silent_is_an_error_in_time() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    for (address, word) in [(nobody, "cannot reach"), (silent, "gave no answer within")] {
        let limit = Duration::from_millis(400);
        let config = SessionConfig { connect_timeout: limit, request_timeout: limit, ..quick() };
        let started = Instant::now();
        let session =
            Session::new(credentials(&format!("http://{address}"), "hunter2"), None, config);
        let client = client_over(session.unwrap(), wanted(), None);
        let all = join_all((0..10).map(|_| client.volume(volume()))).await;
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        for one in all {
            let error = keystone_error(one.unwrap_err());
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.to_string().contains(&address.to_string()), "{error}");
            assert_eq!(error.reason(), "KeystoneUnreachable");
            assert!(error.source().is_some(), "the cause is in the chain");
        }
    }
}

#[tokio::test]
async fn the_address_is_the_catalogs_with_the_project_however_it_is_written() {
    let expected = format!("/volume/v3/{PROJECT}/volumes/{}", volume());
    for endpoint in ["/volume", "/volume/", "/volume/v3", &format!("/volume/v3/{PROJECT}")] {
        let cloud = Cloud::up().await;
        endpoint.clone_into(&mut cloud.state.endpoint.lock().unwrap());
        cloud.client().volume(volume()).await.unwrap();
        assert_eq!(cloud.state.paths(), [expected.as_str()], "{endpoint}");
    }
    let cloud = Cloud::up().await;
    let elsewhere = format!("{}/elsewhere/v3", cloud.server.uri());
    let client = client_over(cloud.session(quick()), wanted(), Some(&elsewhere));
    client.volume(volume()).await.unwrap();
    let paths = cloud.state.paths();
    assert_eq!(paths, [format!("/elsewhere/v3/{PROJECT}/volumes/{}", volume())]);
}

#[tokio::test]
async fn an_endpoint_that_the_catalog_lacks_is_told_with_what_it_has() {
    for (wanted, words) in [
        (
            Wanted { region: Some("RegionTwo".to_owned()), ..wanted() },
            &["public", "RegionTwo", "volumev3 public in RegionOne"][..],
        ),
        (
            Wanted { interface: Interface::Internal, ..wanted() },
            &["internal endpoint", "volumev3 public in RegionOne"],
        ),
        (
            Wanted { types: service_types(Some("my-volumes")), ..wanted() },
            &["my-volumes", "identity, volumev2, volumev3"],
        ),
    ] {
        let cloud = Cloud::up().await;
        let client = client_over(cloud.session(quick()), wanted, None);
        let error = client.volume(volume()).await.unwrap_err();
        assert_eq!(error.reason(), "NoEndpoint");
        let text = keystone_error(error).to_string();
        for word in words {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}

#[tokio::test]
async fn only_a_service_sends_its_token_as_a_services() {
    for (roles, is_service) in [(vec!["member"], false), (vec!["member", "service"], true)] {
        let cloud = Cloud::up().await;
        *cloud.state.roles.lock().unwrap() = roles;
        let client = cloud.client();
        assert_eq!(client.is_service().await.unwrap(), is_service);
        client.volume(volume()).await.unwrap();
        let seen = cloud.state.seen.lock().unwrap();
        let expected = is_service.then(|| seen[0].token.clone());
        assert_eq!(seen[0].service_token, expected);
        assert_eq!(cloud.state.made(), 1);
    }
}

#[tokio::test]
async fn http_basic_goes_along_with_each_request() {
    let server = MockServer::start().await;
    let body = json!({"volume": {"id": volume(), "name": "", "status": "available", "size": 1}});
    Mock::given(header("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="))
        .and(header("x-auth-token", "Aladdin:c0ffee"))
        .respond_with(ResponseTemplate::new(200).set_body_json(body))
        .mount(&server)
        .await;
    let password = Secret::new("open sesame".to_owned());
    let auth = Auth::basic(&server.uri(), "c0ffee", "Aladdin", password).unwrap();
    let client = Client::new(auth, ClientConfig::default()).unwrap();
    client.volume(volume()).await.unwrap();
}

/// A server with a certificate of the fixtures' own CA, which answers everything with 503. It tells how
/// many requests came through, since a handshake that fails brings none.
struct Encrypted {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

impl Encrypted {
    fn up(asks_for_certificate: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = CertificateDer::from_pem_file(fixture("ca.pem")).unwrap();
        let own = CertificateDer::from_pem_file(fixture("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
        let builder = if asks_for_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(ca).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            ServerConfig::builder().with_client_cert_verifier(verifier)
        } else {
            ServerConfig::builder().with_no_client_auth()
        };
        let config = Arc::new(builder.with_single_cert(vec![own], key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream.unwrap());
                let mut head = [0; 8192];
                if stream.read(&mut head).is_ok_and(|n| n > 0) {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(
                        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    );
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        Self { address, requests }
    }

    /// Whether a request comes through.
    async fn is_reached(&self, tls: Tls) -> bool {
        let config = SessionConfig { tls, tries: 1, ..quick() };
        let url = format!("https://{}/v3", self.address);
        let session = Session::new(credentials(&url, "hunter2"), None, config).unwrap();
        let error = session.token(None).await.unwrap_err();
        let reached = self.requests.swap(0, Ordering::SeqCst) > 0;
        let expected = if reached { "KeystoneFault" } else { "KeystoneUnreachable" };
        assert_eq!(error.reason(), expected, "{error} {:?}", error.source());
        reached
    }
}

#[tokio::test]
async fn a_ca_of_ones_own_is_trusted_where_it_is_named_and_nothing_is_verified_only_if_asked() {
    let server = Encrypted::up(false);
    assert!(!server.is_reached(Tls::default()).await, "an unknown CA was trusted");
    assert!(server.is_reached(Tls { ca: Some(fixture("ca.pem")), ..Tls::default() }).await);
    assert!(server.is_reached(Tls { insecure: true, ..Tls::default() }).await);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let server = Encrypted::up(true);
    let ca = Tls { ca: Some(fixture("ca.pem")), ..Tls::default() };
    assert!(!server.is_reached(ca.clone()).await, "the server let anybody in");
    let certificate = Some(fixture("client.pem"));
    let key = Some(fixture("client.key"));
    assert!(server.is_reached(Tls { certificate, key, ..ca }).await);
}

/// Who looks on.
#[derive(Debug, Default)]
struct Onlooker(Mutex<Vec<String>>);

impl Watch for Onlooker {
    fn asked(&self, asked: &Asked) {
        self.0.lock().unwrap().push(format!("{asked:?}"));
    }

    fn heard(&self, heard: &Heard<'_>) {
        self.0.lock().unwrap().push(format!("{heard:?}"));
    }
}

#[tokio::test]
async fn whoever_looks_on_sees_the_request_for_a_token_and_neither_password_nor_token() {
    let cloud = Cloud::up().await;
    let onlooker = Arc::new(Onlooker::default());
    let watch: Arc<dyn Watch> = Arc::clone(&onlooker) as _;
    cloud.client().watched_by(&watch).volume(volume()).await.unwrap();
    let seen = onlooker.0.lock().unwrap().clone();
    assert_eq!(seen.len(), 4, "{seen:#?}");
    assert!(seen[0].contains("/identity/v3/auth/tokens") && seen[0].contains("<redacted>"));
    assert!(seen[1].contains("POST") && seen[1].contains("Ok(201)"), "{}", seen[1]);
    assert!(seen[2].contains("/volumes/") && seen[3].contains("Ok(200)"), "{seen:#?}");
    let all = seen.concat();
    assert!(!all.contains("hunter2") && !all.contains("gAAAAAB"), "{all}");
}
