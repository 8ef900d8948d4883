//! What becomes of the requests of nodes that are off, against an API server in memory.
#![allow(clippy::unwrap_used)]

mod fake_api;

use std::time::Duration;

use attachd::{
    attach::{Engine, EngineConfig, Ledger, Origin},
    controller::{Evacuation, OUT_OF_SERVICE},
    health::{Liveness, Readiness},
    model::{AccessMode, AttachSpec, MultipathPolicy, Usage, VolumeId},
    requests::BEAT,
    testing::{Fault, SimWorld, Style, When},
};
use fake_api::{FINALIZER, FakeApi};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// A cloud and a cluster, with a volume that the node worker-3 had when its power went.
struct Site {
    api: FakeApi,
    world: SimWorld,
    volume: VolumeId,
}

struct Running {
    readiness: Readiness,
    liveness: Liveness,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

impl Site {
    async fn new() -> Self {
        let world = SimWorld::new(Style::TargetPerVolume);
        let volume = world.state().create_volume(0, 1);
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_in_boot(directory.path(), &world.boot()).unwrap();
        let (host, cinder) = (world.host(volume), world.cinder());
        let engine = Engine::new(host, cinder, ledger, EngineConfig::default());
        let spec = AttachSpec {
            volume,
            mode: AccessMode::Rw,
            usage: Usage::Block,
            multipath: MultipathPolicy::Auto,
            instance: None,
        };
        let (_keep, stop) = watch::channel(false);
        let attached = engine.attach(&spec, &Origin::CommandLine, &|_| {}, &stop).await.unwrap();
        world.reboot();
        let site = Self { api: FakeApi::default(), world: world.restarted(), volume };
        site.api.create(
            "db",
            "one",
            &json!({"nodeName": "worker-3", "volumeID": volume.to_string()}),
        );
        site.api.change("db", |db| {
            db["metadata"]["finalizers"] = json!([FINALIZER]);
            db["status"] = json!({"attachmentID": attached.attachment.to_string()});
        });
        site
    }

    fn evacuation(&self) -> Running {
        let (readiness, liveness) = (Readiness::new(&["kubernetes"]), Liveness::default());
        let heartbeat = liveness.heartbeat("evacuation", 3 * BEAT);
        let (cinder, client) = (self.world.cinder(), self.api.client());
        let evacuation = Evacuation::new(cinder, client, readiness.clone(), heartbeat);
        let (stop, stopped) = watch::channel(false);
        Running { readiness, liveness, stop, task: tokio::spawn(evacuation.serve(stopped)) }
    }

    fn attachments(&self) -> usize {
        self.world.assert_sound();
        self.world.state().cinder.attachments.len()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.api.until(what, || holds(self)).await;
    }

    async fn until_gone(&self) {
        self.until("gone", |site| site.api.request("db").is_none()).await;
    }
}

const QUIET: Duration = Duration::from_mins(10);

#[tokio::test(start_paused = true)]
async fn a_deleted_request_of_a_node_that_is_off_gives_its_volume_back_and_goes() {
    let site = Site::new().await;
    site.api.node("worker-3", Some(OUT_OF_SERVICE));
    let running = site.evacuation();
    site.until("told", |site| site.api.ready("db").as_deref() == Some("NodeOutOfService")).await;
    sleep(QUIET).await;
    assert_eq!(site.attachments(), 1, "it is not deleted");
    site.api.delete("db");
    site.until_gone().await;
    assert_eq!(site.attachments(), 0);
    assert_eq!(site.world.state().cinder.volumes[&site.volume].status, "available");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_for_a_node_without_the_taint() {
    for taint in [None, Some("node.kubernetes.io/unreachable")] {
        let site = Site::new().await;
        site.api.node("worker-3", taint);
        site.api.node("worker-4", Some(OUT_OF_SERVICE));
        let (calls, writes) = (site.world.state().cinder.calls, site.api.writes());
        let running = site.evacuation();
        sleep(QUIET).await;
        site.api.delete("db");
        sleep(QUIET).await;
        assert_eq!((site.attachments(), site.api.ready("db")), (1, None));
        assert_eq!((site.world.state().cinder.calls, site.api.writes()), (calls, writes));
        // The administrator says it later.
        site.api.node("worker-3", Some(OUT_OF_SERVICE));
        site.until_gone().await;
        assert_eq!(site.attachments(), 0);
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_taint_that_was_taken_off_unseen_stops_it() {
    let site = Site::new().await;
    site.api.node("worker-3", Some(OUT_OF_SERVICE));
    let running = site.evacuation();
    site.until("told", |site| site.api.ready("db").is_some()).await;
    site.api.node_untold("worker-3", None);
    site.api.delete("db");
    sleep(QUIET).await;
    assert_eq!(site.attachments(), 1);
    assert!(site.api.request("db").is_some());
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_attachment_whose_id_was_never_told_is_found_by_its_host_or_reported() {
    for reserved_only in [false, true] {
        let site = Site::new().await;
        site.api.change("db", |db| db["status"] = json!({}));
        if reserved_only {
            for attachment in site.world.state().cinder.attachments.values_mut() {
                attachment.address = None;
            }
        }
        site.api.node("worker-3", Some(OUT_OF_SERVICE));
        site.api.delete("db");
        let running = site.evacuation();
        if reserved_only {
            sleep(QUIET).await;
            assert_eq!(site.attachments(), 1, "it may be anybody's");
            let db = site.api.request("db").unwrap();
            assert!(db["status"].to_string().contains("can't be told"), "{db}");
            site.world.state().take_by_force(site.volume);
        }
        site.until_gone().await;
        assert_eq!(site.attachments(), 0);
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attachment_of_another_volume_or_host_is_never_deleted() {
    for of_volume in [true, false] {
        let site = Site::new().await;
        let other = if of_volume {
            let other = site.world.state().create_volume(1, 1);
            assert!(site.world.state().other_node_attaches(other));
            other
        } else {
            site.world.state().take_by_force(site.volume);
            assert!(site.world.state().other_node_attaches(site.volume));
            site.volume
        };
        let id = {
            let state = site.world.state();
            let mut all = state.cinder.attachments.iter();
            *all.find(|(_, known)| known.volume == other && !known.ours).unwrap().0
        };
        let before = site.attachments();
        site.api.change("db", |db| db["status"] = json!({"attachmentID": id.to_string()}));
        site.api.node("worker-3", Some(OUT_OF_SERVICE));
        site.api.delete("db");
        let running = site.evacuation();
        sleep(QUIET).await;
        assert_eq!(site.attachments(), before);
        assert!(site.api.request("db").is_some(), "a person has to look");
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_at_any_moment_is_overcome_and_two_at_once_do_no_harm() {
    for ahead in 0..4 {
        for status in [500, 409] {
            let site = Site::new().await;
            site.api.node("worker-3", Some(OUT_OF_SERVICE));
            site.api.delete("db");
            site.world.plan_fault(ahead, Fault::Error(When::After));
            site.api.refuse("PATCH /apis/attachd.dev/v1alpha1/volumeattachrequests/db", status);
            let (one, two) = (site.evacuation(), site.evacuation());
            sleep(Duration::from_mins(3)).await;
            assert!(site.api.request("db").is_some());
            let tries = site.api.calls("PATCH /apis/attachd.dev/v1alpha1/volumeattachrequests/db");
            assert!(tries < 100, "{tries} tries in 3 minutes");
            site.api.accept();
            site.until_gone().await;
            assert_eq!(site.attachments(), 0);
            one.end().await;
            two.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_while_it_watches_nodes_and_requests_and_says_what_it_can_not() {
    for kind in ["nodes", "volumeattachrequests"] {
        let site = Site::new().await;
        let call = format!("/{kind}");
        site.api.refuse(&call, 403);
        let running = site.evacuation();
        let what = if kind == "nodes" { "the nodes" } else { "the requests" };
        let refused = format!("[-] kubernetes: can't watch {what}");
        let report = || running.readiness.report().to_string();
        site.until("refused", |_| report().starts_with(&refused)).await;
        sleep(QUIET).await;
        assert!(report().starts_with(&refused), "{}", report());
        assert!(running.liveness.report().is_well(), "{}", running.liveness.report());
        site.api.accept();
        site.until("ready", |_| running.readiness.report().is_well()).await;
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_again_when_a_quiet_watch_goes_on_however_much_the_nodes_say() {
    let site = Site::new().await;
    let running = site.evacuation();
    let report = || running.readiness.report().to_string();
    site.until("ready", |_| running.readiness.report().is_well()).await;
    // All is listed anew, and then not watched.
    site.api.refuse("/volumeattachrequests?watch", 503);
    site.api.lose_while_away("db");
    let chatter = async {
        loop {
            site.api.node("worker-4", None);
            sleep(Duration::from_secs(1)).await;
        }
    };
    let story = async {
        sleep(Duration::from_mins(2)).await;
        // Asked whether it answers, the API server says yes, until the next try to watch.
        site.until("away", |_| report().contains("can't watch the requests")).await;
        site.api.accept();
        site.until("ready again", |_| running.readiness.report().is_well()).await;
        sleep(QUIET).await;
        assert!(running.readiness.report().is_well(), "{}", report());
    };
    tokio::select! {
        () = story => {}
        () = chatter => {}
    }
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn it_lives_while_cinder_keeps_it_waiting_and_ends_when_it_is_told_to() {
    let site = Site::new().await;
    site.api.node("worker-3", Some(OUT_OF_SERVICE));
    site.api.delete("db");
    site.world.plan_fault(0, Fault::Hang(When::Before));
    let running = site.evacuation();
    sleep(QUIET).await;
    assert!(site.api.request("db").is_some(), "Cinder did not keep it waiting");
    assert!(running.liveness.report().is_well(), "{}", running.liveness.report());
    running.end().await;
}
