//! Names from log directories and runtimes, good and bad ones.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fake_cri;

use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use fake_cri::{Container, FakeCri, Fleet, Manner, Sandbox};
use oomprobe::identity::names::{Ended, Names, Resolver, Source};
use oomprobe::identity::path::parse;
use oomprobe::identity::{Claim, Role, Runtime};
use tokio::time::Instant;

const UID: &str = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";
const HASH: &str = "9729a196c4723b60ab401eaff722982d";
const POD: [&str; 3] = ["web-0", "shop", UID];

/// Far more than any answer takes here; a test that waits this long has failed.
const AMPLE: Duration = Duration::from_secs(60);

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn container_claim(id: &str) -> Claim {
    parse(format!("/kubepods/burstable/pod{UID}/{id}").as_bytes())
}

fn pod_claim(uid: &str) -> Claim {
    parse(format!("/kubepods/burstable/pod{uid}").as_bytes())
}

fn fleet() -> Fleet {
    let container = |digit, labels| Container {
        id: id(digit),
        sandbox: id('e'),
        name: "app",
        attempt: 3,
        labels,
    };
    Fleet {
        containers: vec![container('a', Some(POD)), container('b', None)],
        sandboxes: vec![
            Sandbox(id('e'), POD),
            Sandbox(id('f'), ["etcd-node1", "kube-system", HASH]),
        ],
    }
}

/// Runs on one thread, as the daemon does, with a bound on everything.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        tokio::time::timeout(AMPLE, test).await.unwrap();
    }));
}

async fn names(resolver: &Resolver, claim: &Claim) -> Names {
    resolver.names(claim, Instant::now() + AMPLE / 2).await
}

fn error(names: &Names) -> String {
    names.error.as_ref().unwrap().to_string()
}

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn containerd(&self) -> PathBuf {
        self.root().join("run/containerd/containerd.sock")
    }

    fn crio(&self) -> PathBuf {
        self.root().join("run/crio/crio.sock")
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(self.root(), None)
    }

    /// What the kubelet makes for a container: the log directory and the link to it.
    fn log(&self, [pod, namespace, uid]: [&str; 3], container: &str, id: &str, restart: u32) {
        let logs = self.root().join("var/log/containers");
        std::fs::create_dir_all(&logs).unwrap();
        let dir = format!("var/log/pods/{namespace}_{pod}_{uid}/{container}");
        std::fs::create_dir_all(self.root().join(&dir)).unwrap();
        let mut stem = format!("{pod}_{namespace}_{container}-{id}");
        stem.truncate(251);
        symlink(
            format!("/{dir}/{restart}.log"),
            logs.join(format!("{stem}.log")),
        )
        .unwrap();
    }
}

#[test]
fn a_container_from_its_log_link() {
    run(async {
        let host = Host::new();
        host.log(POD, "app", &id('a'), 4);
        host.log(["etcd-node1", "kube-system", HASH], "etcd", &id('b'), 0);
        let resolver = host.resolver();

        let names = names(&resolver, &container_claim(&id('a'))).await;
        let known = names.known.unwrap();
        assert_eq!(known.resolved_by, Source::LogLink);
        assert_eq!(known.pod_name.as_deref(), Some("web-0"));
        assert_eq!(known.namespace.as_deref(), Some("shop"));
        assert_eq!(known.container_name.as_deref(), Some("app"));
        assert_eq!(known.pod_uid.as_deref(), Some(UID));
        assert_eq!(known.restart_count, Some(4));
        assert!(names.trusted);
        assert_eq!(names.error, None);

        let claim = parse(format!("/kubepods/burstable/pod{HASH}/{}", id('b')).as_bytes());
        let names = resolver.names(&claim, Instant::now() + AMPLE).await;
        assert_eq!(names.known.unwrap().pod_uid.as_deref(), Some(HASH));
        assert!(names.trusted, "a static pod's UID is its hash on the node");
    });
}

#[test]
fn what_was_found_outlives_its_source() {
    run(async {
        let host = Host::new();
        host.log(POD, "app", &id('a'), 0);
        let resolver = host.resolver();
        let first = names(&resolver, &container_claim(&id('a'))).await;
        std::fs::remove_dir_all(host.root().join("var")).unwrap();
        let second = names(&resolver, &container_claim(&id('a'))).await;
        assert_eq!(first.known, second.known);
        // Its pod came with it.
        let pod = names(&resolver, &pod_claim(UID)).await.known.unwrap();
        assert_eq!(pod.pod_name.as_deref(), Some("web-0"));
        assert_eq!(pod.container_name, None);
    });
}

#[test]
fn a_cut_link_is_matched_by_what_is_left_of_the_id() {
    run(async {
        let pod_name = "p".repeat(180);
        let other_name = "p".repeat(181);
        let wanted: [&str; 3] = [&pod_name, "shop", UID];
        let other: [&str; 3] = [&other_name, "shop", HASH];
        let container = id('a');

        let host = Host::new();
        host.log(wanted, "app", &container, 1);
        // Another pod's container whose id begins alike.
        host.log(other, "app", &container, 2);
        let names_ = names(&host.resolver(), &container_claim(&container)).await;
        let known = names_.known.unwrap();
        assert_eq!(known.pod_name.as_deref(), Some(pod_name.as_str()));
        assert_eq!(known.container_name.as_deref(), Some("app"));
        assert!(names_.trusted);

        // Without a UID nothing tells the two apart.
        let claim = parse(format!("/system.slice/cri-containerd-{container}.scope").as_bytes());
        let names_ = names(&host.resolver(), &claim).await;
        assert_eq!(names_.known, None);

        // Too little of the id is left to be one.
        let host = Host::new();
        let long = "p".repeat(200);
        host.log([&long, "shop", UID], &"c".repeat(36), &container, 1);
        let names_ = names(&host.resolver(), &container_claim(&container)).await;
        let known = names_.known.unwrap();
        assert_eq!(known.resolved_by, Source::LogDir, "the pod is still known");
        assert_eq!(known.container_name, None);
        assert_eq!(names_.error.unwrap().code(), "no_cri_socket");
    });
}

#[test]
fn hostile_names_in_log_directories() {
    use std::os::unix::ffi::OsStrExt as _;
    run(async {
        let host = Host::new();
        let a = id('a');
        host.log(POD, "app", &id('c'), 0);
        let logs = host.root().join("var/log/containers");
        let hostile: Vec<Vec<u8>> = vec![
            format!("a_b_c_d-{a}.log").into_bytes(),
            format!("a\n_b_c-{a}.log").into_bytes(),
            format!("\x1b[31m_b_c-{a}.log").into_bytes(),
            format!("__-{a}.log").into_bytes(),
            format!("{a}.log").into_bytes(),
            format!("a_b_c-{a}").into_bytes(),
            [b"\xff_b_c-".as_slice(), a.as_bytes(), b".log"].concat(),
            vec![b'x'; 255],
            b".log".to_vec(),
        ];
        for name in hostile {
            symlink("/nowhere", logs.join(std::ffi::OsStr::from_bytes(&name))).unwrap();
        }
        std::fs::create_dir(host.root().join("var/log/pods/___")).unwrap();
        std::fs::create_dir(host.root().join("var/log/pods").join(UID)).unwrap();
        let resolver = host.resolver();
        let claim = parse(format!("/kubepods/pod{HASH}/{a}").as_bytes());
        let names_ = names(&resolver, &claim).await;
        assert_eq!(names_.known, None);
        assert_eq!(error(&names_), "no_cri_socket");

        // A link that points nowhere useful still names the container.
        symlink(
            "../../x",
            logs.join(format!("web-1_shop_app-{}.log", id('d'))),
        )
        .unwrap();
        let known = names(&resolver, &container_claim(&id('d')))
            .await
            .known
            .unwrap();
        assert_eq!(known.pod_name.as_deref(), Some("web-1"));
        assert_eq!(known.pod_uid, None);
    });
}

#[test]
fn unreadable_log_directories_are_said() {
    run(async {
        let host = Host::new();
        std::fs::create_dir_all(host.root().join("var/log")).unwrap();
        std::fs::write(host.root().join("var/log/containers"), "").unwrap();
        let names_ = names(&host.resolver(), &container_claim(&id('a'))).await;
        assert_eq!(names_.error.unwrap().code(), "log_dir_unreadable");
    });
}

#[test]
fn a_container_from_the_runtime() {
    run(async {
        let host = Host::new();
        let _cri = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();

        let names_ = names(&resolver, &container_claim(&id('a'))).await;
        let known = names_.known.unwrap();
        assert_eq!(known.resolved_by, Source::Cri);
        assert_eq!(known.pod_name.as_deref(), Some("web-0"));
        assert_eq!(known.namespace.as_deref(), Some("shop"));
        assert_eq!(known.pod_uid.as_deref(), Some(UID));
        assert_eq!(known.container_name.as_deref(), Some("app"));
        assert_eq!(known.restart_count, Some(3));
        assert_eq!(known.image.as_deref(), Some("registry.example/app:1"));
        assert_eq!(known.runtime, Some(Runtime::Containerd));
        assert_eq!(known.role, None);
        assert!(names_.trusted);

        // Without the kubelet's labels the pod comes from the sandbox.
        let unlabelled = names(&resolver, &container_claim(&id('b')))
            .await
            .known
            .unwrap();
        assert_eq!(unlabelled.pod_name.as_deref(), Some("web-0"));
        assert_eq!(unlabelled.container_name.as_deref(), Some("app"));

        let pause = names(&resolver, &container_claim(&id('e')))
            .await
            .known
            .unwrap();
        assert_eq!(pause.role, Some(Role::Sandbox));
        assert_eq!(pause.pod_name.as_deref(), Some("web-0"));
        assert_eq!(pause.container_name, None);

        let pod = names(&resolver, &pod_claim(HASH)).await.known.unwrap();
        assert_eq!(pod.resolved_by, Source::Cri);
        assert_eq!(pod.pod_name.as_deref(), Some("etcd-node1"));
        assert_eq!(pod.role, None);

        let names_ = names(&resolver, &container_claim(&id('0'))).await;
        assert_eq!(error(&names_), "not_found");
    });
}

#[test]
fn a_source_that_disagrees_with_the_path_is_not_trusted() {
    run(async {
        let host = Host::new();
        let _cri = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();
        let a = id('a');

        let claim = parse(format!("/kubepods/burstable/pod{HASH}/{a}").as_bytes());
        let names_ = names(&resolver, &claim).await;
        assert!(names_.known.is_some());
        assert!(!names_.trusted);

        let user =
            format!("/user.slice/user-1000.slice/user@1000.service/cri-containerd-{a}.scope");
        let names_ = names(&resolver, &parse(user.as_bytes())).await;
        assert!(names_.known.is_some());
        assert!(!names_.trusted);
    });
}

#[test]
fn what_is_not_kubernetes_is_not_asked_for() {
    run(async {
        let host = Host::new();
        let cri = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();
        for path in [
            format!("/docker/{}", id('a')),
            "/system.slice/ssh.service".to_owned(),
        ] {
            let names_ = names(&resolver, &parse(path.as_bytes())).await;
            assert_eq!((names_.known, names_.error), (None, None), "{path}");
        }
        assert_eq!(cri.counters.connections.get(), 0);
    });
}

/// Every bad manner ends in a reason within the deadline, and is not met again at once.
#[test]
fn bad_runtimes_give_a_reason_in_time() {
    for manner in [
        Manner::Hangs,
        Manner::HangsInCall,
        Manner::Garbage,
        Manner::Closes,
        Manner::HalfAnswer,
        Manner::BadMessage,
        Manner::OtherService,
        Manner::Slowly(AMPLE),
    ] {
        run(async move {
            let host = Host::new();
            let cri = FakeCri::listen(&host.containerd(), manner, fleet());
            let resolver = host.resolver();
            let deadline = Instant::now() + Duration::from_secs(2);
            let names_ = resolver.names(&container_claim(&id('a')), deadline).await;
            assert_eq!(names_.known, None);
            let text = error(&names_);
            assert!(text.starts_with("cri_unreachable: "), "{text}");
            assert!(text.contains("containerd.sock"), "{text}");

            let before = cri.counters.connections.get();
            assert!(before >= 1);
            let names_ = names(&resolver, &container_claim(&id('b'))).await;
            assert_eq!(error(&names_), text, "the reason is repeated");
            assert_eq!(
                cri.counters.connections.get(),
                before,
                "and the socket left alone"
            );
        });
    }
}

#[test]
fn a_runtime_may_take_its_time() {
    run(async {
        let host = Host::new();
        let slow = Manner::Slowly(Duration::from_millis(100));
        let _cri = FakeCri::listen(&host.containerd(), slow, fleet());
        let names_ = names(&host.resolver(), &container_claim(&id('a'))).await;
        assert!(names_.known.is_some());
        assert!(names_.latency_us >= 100_000);
    });
}

#[test]
fn a_runtime_that_hangs_holds_up_nobody_else() {
    run(async {
        let host = Host::new();
        host.log(POD, "app", &id('c'), 0);
        let _hangs = FakeCri::listen(&host.containerd(), Manner::Hangs, fleet());
        let _knows = FakeCri::listen(&host.crio(), Manner::Well, fleet());
        let resolver = host.resolver();
        // The second runtime gets its share of the time.
        let deadline = Instant::now() + Duration::from_secs(4);
        let slow_claim = container_claim(&id('a'));
        let quick_claim = container_claim(&id('c'));
        let slow = resolver.names(&slow_claim, deadline);
        let quick = resolver.names(&quick_claim, deadline);
        let (slow, quick) = tokio::join!(slow, quick);
        assert_eq!(slow.known.unwrap().resolved_by, Source::Cri);
        assert_eq!(quick.known.unwrap().resolved_by, Source::LogLink);
        assert!(quick.latency_us < slow.latency_us);
    });
}

#[test]
fn the_deadline_is_the_callers() {
    run(async {
        let host = Host::new();
        let cri = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();
        // Not `now`: timers tick in milliseconds, and within one the runtime may have answered.
        let past = Instant::now() - Duration::from_secs(1);
        let names_ = resolver.names(&container_claim(&id('a')), past).await;
        assert_eq!(names_.known, None);
        assert!(names_.error.is_some());
        // A socket that was given no time is not held to be dead.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(
            names(&resolver, &container_claim(&id('a')))
                .await
                .known
                .is_some()
        );
        assert!(cri.counters.connections.get() >= 1);
    });
}

#[test]
fn no_socket_and_a_wrong_one() {
    run(async {
        let host = Host::new();
        let names_ = names(&host.resolver(), &container_claim(&id('a'))).await;
        assert_eq!(error(&names_), "no_cri_socket");

        let missing = host.root().join("missing.sock");
        let resolver = Resolver::new(host.root(), Some(&missing));
        let names_ = names(&resolver, &container_claim(&id('a'))).await;
        let text = error(&names_);
        assert!(
            text.starts_with("cri_unreachable: ") && text.contains("missing.sock"),
            "{text}"
        );

        let file = host.root().join("file.sock");
        std::fs::write(&file, "").unwrap();
        let resolver = Resolver::new(host.root(), Some(&file));
        let names_ = names(&resolver, &container_claim(&id('a'))).await;
        assert_eq!(names_.error.unwrap().code(), "cri_unreachable");
    });
}

#[test]
fn a_named_socket_is_the_only_one_asked() {
    run(async {
        let host = Host::new();
        let _usual = FakeCri::listen(&host.containerd(), Manner::Hangs, Fleet::default());
        let named = host.root().join("x.sock");
        let _named = FakeCri::listen(&named, Manner::Well, fleet());
        let url = PathBuf::from(format!("unix://{}", named.display()));
        for path in [named, url] {
            let resolver = Resolver::new(host.root(), Some(&path));
            assert!(
                names(&resolver, &container_claim(&id('a')))
                    .await
                    .known
                    .is_some()
            );
        }
    });
}

#[test]
fn a_failure_is_soon_forgotten() {
    run(async {
        let host = Host::new();
        let resolver = host.resolver();
        let claim = container_claim(&id('a'));
        assert_eq!(error(&names(&resolver, &claim).await), "no_cri_socket");
        // The cgroup exists before the runtime's record of it.
        host.log(POD, "app", &id('a'), 0);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(names(&resolver, &claim).await.known.is_some());
    });
}

#[test]
fn a_runtime_that_restarts_is_found_again() {
    run(async {
        let host = Host::new();
        let first = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();
        assert!(
            names(&resolver, &container_claim(&id('a')))
                .await
                .known
                .is_some()
        );
        drop(first);
        let _second = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        assert!(
            names(&resolver, &container_claim(&id('b')))
                .await
                .known
                .is_some()
        );
    });
}

#[test]
fn a_burst_asks_once() {
    run(async {
        let host = Host::new();
        let cri = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = Rc::new(host.resolver());
        let mut lookups = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let resolver = resolver.clone();
            lookups.spawn_local(async move { names(&resolver, &container_claim(&id('a'))).await });
        }
        for names_ in lookups.join_all().await {
            assert!(names_.known.is_some());
        }
        // Version and ListContainers.
        assert_eq!(cri.counters.calls.get(), 2);
    });
}

#[test]
fn warmed_names_need_no_runtime() {
    run(async {
        let host = Host::new();
        let cri = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();
        assert_eq!(resolver.warm(Instant::now() + AMPLE / 2).await, Ok(4));
        drop(cri);
        for digit in ['a', 'b', 'e', 'f'] {
            let names_ = names(&resolver, &container_claim(&id(digit))).await;
            assert!(names_.known.unwrap().pod_name.is_some(), "{digit}");
        }
        assert!(names(&resolver, &pod_claim(HASH)).await.known.is_some());

        let nothing = Host::new().resolver();
        let error = nothing.warm(Instant::now() + AMPLE / 2).await.unwrap_err();
        assert_eq!(error.code(), "no_cri_socket");
    });
}

#[test]
fn how_a_container_ended() {
    run(async {
        let host = Host::new();
        let deadline = || Instant::now() + AMPLE / 2;
        assert_eq!(
            host.resolver().ended(&id('a'), false, deadline()).await,
            None
        );
        let fake = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = host.resolver();
        let expected = Ended {
            exit_code: Some(137),
            reason: Some("OOMKilled".to_owned()),
            sandbox_stopped: Some(false),
            grace_period: Some(Duration::from_secs(45)),
        };
        let ended = resolver.ended(&id('a'), false, deadline()).await;
        assert_eq!(ended, Some(expected.clone()));
        assert_eq!(resolver.ended(&id('c'), false, deadline()).await, None);
        drop(fake);
        let mut fleet = fleet();
        fleet.sandboxes.clear();
        let _fake = FakeCri::listen(&host.containerd(), Manner::Well, fleet);
        let without_sandbox = Ended {
            sandbox_stopped: Some(true),
            ..expected
        };
        let ended = host.resolver().ended(&id('a'), false, deadline()).await;
        assert_eq!(ended, Some(without_sandbox));
    });
}

#[test]
fn many_ends_at_once_share_their_questions() {
    run(async {
        let time = Duration::from_secs(3);
        let host = Host::new();
        let fake = FakeCri::listen(&host.containerd(), Manner::Well, fleet());
        let resolver = Rc::new(host.resolver());
        let deadline = Instant::now() + time;
        // Its sandbox runs on: all ask until the deadline.
        let mut asking = tokio::task::JoinSet::new();
        for index in 0..200 {
            let (resolver, id) = (Rc::clone(&resolver), id(['a', 'b'][index % 2]));
            asking.spawn_local(async move { resolver.ended(&id, true, deadline).await });
        }
        while let Some(ended) = asking.join_next().await {
            assert!(ended.unwrap().is_some());
        }
        let calls = fake.counters.calls.get();
        // One for each of how it ended, and two for what there is, four times a second.
        let rounds = usize::try_from(time.as_millis() / 250).unwrap() + 2;
        assert!(calls <= 1 + 200 + 2 * rounds, "{calls} calls");
    });
}

#[test]
fn a_runtime_that_does_not_tell_ends_is_given_up() {
    run(async {
        for manner in [
            Manner::Hangs,
            Manner::HangsInCall,
            // A sandbox that is not listed would be one that was stopped.
            Manner::HangsOnSandboxes,
            Manner::Garbage,
            Manner::Closes,
            Manner::HalfAnswer,
            Manner::BadMessage,
            Manner::OtherService,
        ] {
            let host = Host::new();
            let _fake = FakeCri::listen(&host.containerd(), manner, fleet());
            let deadline = Instant::now() + Duration::from_millis(300);
            assert_eq!(host.resolver().ended(&id('a'), false, deadline).await, None);
        }
    });
}
