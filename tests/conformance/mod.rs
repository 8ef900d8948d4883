//! Where the cases of `tests/cinder_conformance.rs` are played: against a real Cinder, as one of its users, or
//! against the recording that was made of them. `ATTACHD_TEST_IDENTITY` says which; without it the
//! recording is played.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Each test program uses a part of it.
#![allow(dead_code)]

mod recorder;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use attachd::{
    cinder::{Auth, Client, ClientConfig, Microversion, PREFERRED},
    cloud::{Cloud, Places, Settings},
    keystone::SessionConfig,
    model::{Connector, VolumeId},
};
use futures::FutureExt as _;
use recorder::Recorder;
use serde_json::{Value, json};

use crate::cinder_replay::{PROJECT, Replay, conformance_recording};

/// Who asks, and whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// What was recorded of [`Identity::NoAuth`].
    Recorded,
    /// The lab's Cinder without authentication.
    NoAuth,
    /// The lab's older Cinder (Debian 12's, release 21), without authentication.
    Old,
    /// A member of the project, by password.
    Member,
    /// A member's application credential.
    ApplicationCredential,
    /// A member with the role `service`.
    Service,
}

#[expect(clippy::disallowed_methods, reason = "the test's own configuration")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn needed(name: &str) -> String {
    setting(name).unwrap_or_else(|| panic!("{name} is not set; scripts/test cinder does that"))
}

impl Identity {
    pub fn of_this_run() -> Self {
        match setting("ATTACHD_TEST_IDENTITY").as_deref() {
            None => Self::Recorded,
            Some("no-auth") => Self::NoAuth,
            Some("old") => Self::Old,
            Some("member") => Self::Member,
            Some("application-credential") => Self::ApplicationCredential,
            Some("service") => Self::Service,
            Some(other) => panic!("ATTACHD_TEST_IDENTITY is {other:?}"),
        }
    }

    /// Cinder without authentication makes everybody an administrator.
    pub fn is_told_hosts(self) -> bool {
        self.cloud().is_none() || self == Self::Service
    }

    /// Its name in the lab's clouds.yaml.
    fn cloud(self) -> Option<&'static str> {
        match self {
            Self::Recorded | Self::NoAuth | Self::Old => None,
            Self::Member => Some("member"),
            Self::ApplicationCredential => Some("application-credential"),
            Self::Service => Some("service"),
        }
    }
}

/// One case's Cinder.
pub struct Bench {
    pub identity: Identity,
    /// What plays or records it, for cases without authentication.
    endpoint: String,
    project: String,
    http: reqwest::Client,
}

/// Plays a case.
pub async fn case<F, Fut>(name: &str, test: F)
where
    F: FnOnce(Arc<Bench>) -> Fut,
    Fut: Future<Output = ()>,
{
    let identity = Identity::of_this_run();
    let real = || needed("ATTACHD_TEST_CINDER");
    match identity {
        Identity::Recorded => {
            let replay = Replay::of(conformance_recording(name)).await;
            test(Bench::new(identity, replay.uri(), PROJECT)).await;
            replay.finish();
        }
        Identity::NoAuth if setting("ATTACHD_BLESS").is_some() => {
            let recorder = Recorder::start(&real(), &needed("ATTACHD_TEST_PROJECT")).await;
            let project = needed("ATTACHD_TEST_PROJECT");
            test(Bench::new(identity, recorder.uri(), &project)).await;
            recorder.write(name);
        }
        Identity::Old => {
            let endpoint = needed("ATTACHD_TEST_CINDER_OLD");
            test(Bench::new(identity, endpoint, &needed("ATTACHD_TEST_PROJECT"))).await;
        }
        Identity::NoAuth
        | Identity::Member
        | Identity::ApplicationCredential
        | Identity::Service => {
            test(Bench::new(identity, real(), &needed("ATTACHD_TEST_PROJECT"))).await;
        }
    }
}

/// Plays a case with a volume of its own, and removes that however the case ends.
pub async fn case_with_volume<F, Fut>(name: &str, volume_type: &str, test: F)
where
    F: FnOnce(Arc<Bench>, VolumeId) -> Fut,
    Fut: Future<Output = ()>,
{
    case(name, async |bench| with_volume(bench, volume_type, test).await).await;
}

/// For tests that aren't cases: with a volume that the lab's Cinder without authentication makes.
pub async fn with_real_volume<F, Fut>(volume_type: &str, test: F)
where
    F: FnOnce(Arc<Bench>, VolumeId) -> Fut,
    Fut: Future<Output = ()>,
{
    let (endpoint, project) = (needed("ATTACHD_TEST_CINDER"), needed("ATTACHD_TEST_PROJECT"));
    with_volume(Bench::new(Identity::NoAuth, endpoint, &project), volume_type, test).await;
}

async fn with_volume<F, Fut>(bench: Arc<Bench>, volume_type: &str, test: F)
where
    F: FnOnce(Arc<Bench>, VolumeId) -> Fut,
    Fut: Future<Output = ()>,
{
    let volume = bench.create_volume(volume_type).await;
    let ended = AssertUnwindSafe(test(Arc::clone(&bench), volume)).catch_unwind().await;
    if let Err(panic) = ended {
        // A replay has nothing to clean up, and would only complain of that.
        if bench.identity != Identity::Recorded {
            bench.remove(volume).await;
        }
        std::panic::resume_unwind(panic);
    }
    bench.remove(volume).await;
}

impl Bench {
    fn new(identity: Identity, endpoint: String, project: &str) -> Arc<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Arc::new(Self { identity, endpoint, project: project.to_owned(), http })
    }

    pub fn client_up_to(&self, highest_version: Microversion) -> Client {
        let auth = match self.identity.cloud() {
            None => Auth::no_auth(&self.endpoint, &self.project, "admin"),
            Some(name) => {
                let settings = Settings {
                    os_cloud: Some(name.to_owned()),
                    os_client_config_file: Some(needed("ATTACHD_TEST_CLOUDS")),
                    ..Settings::default()
                };
                let cloud = Cloud::find(&settings, &Places::usual(&settings)).unwrap();
                cloud.auth(&SessionConfig::default(), None)
            }
        };
        let auth = auth.unwrap();
        Client::new(auth, ClientConfig { highest_version, ..ClientConfig::default() }).unwrap()
    }

    pub fn client(&self) -> Client {
        self.client_up_to(PREFERRED)
    }

    /// What the client under test can't do, as the administrator of a Cinder without authentication.
    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}/v3/{}{path}", self.endpoint, self.project);
        let mut request = self
            .http
            .request(method.parse().unwrap(), url)
            .timeout(Duration::from_mins(2))
            .header("x-auth-token", format!("admin:{}", self.project))
            .header("x-openstack-request-id", recorder::ADMIN)
            .header("openstack-api-version", "volume 3.54");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    async fn create_volume(&self, volume_type: &str) -> VolumeId {
        let body =
            json!({"volume": {"size": 1, "name": "attachd test", "volume_type": volume_type}});
        let (status, answer) = self.ask("POST", "/volumes", Some(body)).await;
        assert_eq!(status, 202, "{answer}");
        let id: VolumeId = answer["volume"]["id"].as_str().unwrap().parse().unwrap();
        assert!(self.wait_for(id, "available").await, "the volume did not become available");
        id
    }

    async fn status(&self, id: VolumeId) -> String {
        let (_, answer) = self.ask("GET", &format!("/volumes/{id}"), None).await;
        answer["volume"]["status"].as_str().unwrap_or("gone").to_owned()
    }

    async fn wait_for(&self, id: VolumeId, wanted: &str) -> bool {
        for _ in 0..600 {
            if self.status(id).await == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    pub async fn act(&self, id: VolumeId, action: Value) {
        let (status, answer) =
            self.ask("POST", &format!("/volumes/{id}/action"), Some(action)).await;
        assert_eq!(status, 202, "{answer}");
    }

    /// Whatever the case did to it.
    async fn remove(&self, id: VolumeId) {
        let list = format!("/attachments?volume_id={id}");
        for attachment in self.ask("GET", &list, None).await.1["attachments"].as_array().unwrap() {
            let attachment = attachment["id"].as_str().unwrap();
            let (status, _) = self.ask("DELETE", &format!("/attachments/{attachment}"), None).await;
            if status >= 400 {
                let force = json!({"os-force_detach": {"attachment_id": attachment, "connector": connector("node-1")}});
                self.ask("POST", &format!("/volumes/{id}/action"), Some(force)).await;
            }
        }
        let reset =
            json!({"os-reset_status": {"status": "available", "attach_status": "detached"}});
        self.act(id, reset).await;
        let (status, answer) = self.ask("DELETE", &format!("/volumes/{id}"), None).await;
        assert_eq!(status, 202, "{answer}");
        assert!(self.wait_for(id, "gone").await, "the volume could not be deleted");
    }
}

pub fn connector(node: &str) -> Connector {
    serde_json::from_value(json!({
        "initiator": format!("iqn.2026-11.dev.attachd.test:{node}"), "ip": "127.0.0.1",
        "host": node, "platform": "x86_64", "os_type": "linux", "multipath": true,
        "do_local_attach": false,
    }))
    .unwrap()
}
