//! The path grammar against paths seen in the field, and against anything at all.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::LazyLock;

use oomprobe::identity::path::{join_names, parse, parse_names};
use oomprobe::identity::{Claim, Orchestrator};
use proptest::prelude::*;
use serde_json::Value;

static VECTORS: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    let file = include_str!("data/cgroup-vectors.json");
    let vectors: Vec<Value> = serde_json::from_str(file).unwrap();
    vectors
        .into_iter()
        .map(|mut vector| {
            let path = vector["path"].as_str().unwrap().to_owned();
            (path, vector["expect"].take())
        })
        .collect()
});

/// Leaf first, each name ended by NUL: what BPF records for `path`.
fn kernel_names(path: &[u8]) -> Vec<u8> {
    let mut names = Vec::new();
    for name in path.rsplit(|b| *b == b'/').filter(|name| !name.is_empty()) {
        names.extend_from_slice(name);
        names.push(0);
    }
    names
}

#[test]
fn every_vector_is_claimed_as_expected() {
    let vectors = &*VECTORS;
    assert!(vectors.len() >= 174, "vectors are missing");
    let mut wrong = 0;
    for (path, expect) in vectors {
        let got = serde_json::to_value(parse(path.as_bytes())).unwrap();
        if got != *expect {
            wrong += 1;
            eprintln!("{path}\n  expected {expect}\n  got      {got}");
        }
    }
    assert_eq!(wrong, 0, "of {} vectors", vectors.len());
}

#[test]
fn names_from_the_kernel_say_the_same_as_the_path() {
    for (path, _) in &*VECTORS {
        // Paths from files only: the kernel's names know no dots and no suffix.
        if path.contains("..") || path.ends_with(')') {
            continue;
        }
        let names = kernel_names(path.as_bytes());
        assert_eq!(parse_names(&names, false), parse(path.as_bytes()), "{path}");
    }
}

#[test]
fn a_directory_named_deleted_is_not_a_removed_one() {
    let id = "a".repeat(64);
    let names = format!("{id} (deleted)\0docker\0");
    assert_eq!(parse_names(names.as_bytes(), false).container_id, None);
    let path = format!("/docker/{id} (deleted)");
    assert_eq!(parse(path.as_bytes()).container_id, Some(id));
}

#[test]
fn cut_names_keep_the_ids_but_not_the_trust() {
    let id = "0123456789abcdef".repeat(4);
    let uid = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";
    let whole = kernel_names(format!("/kubepods/burstable/pod{uid}/{id}").as_bytes());

    let cut = whole.strip_suffix(b"kubepods\0").unwrap();
    let claim = parse_names(cut, true);
    assert_eq!(claim.pod_uid.as_deref(), Some(uid));
    assert_eq!(claim.container_id.as_deref(), Some(id.as_str()));
    assert_eq!(claim.qos.unwrap().as_str(), "burstable");
    assert!(!claim.trusted);

    // A name without its NUL was cut itself and must not become a level.
    let claim = parse_names(&whole[..whole.len() - 3], true);
    assert_eq!(claim.qos.unwrap().as_str(), "burstable");
    assert_eq!(join_names(&whole, false), parse_back(uid, &id));
    assert_eq!(join_names(b"", false), b"/");
    assert_eq!(join_names(b"leaf\0", true), "…/leaf".as_bytes());
}

fn parse_back(uid: &str, id: &str) -> Vec<u8> {
    format!("/kubepods/burstable/pod{uid}/{id}").into_bytes()
}

/// Rules of the facts that no collected path exercises.
#[expect(clippy::too_many_lines, reason = "a table")]
#[test]
fn rules_beyond_the_collected_paths() {
    let a = "a".repeat(64);
    let b = "b".repeat(64);
    let c = "c".repeat(64);
    let uid = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";
    let uid2 = "11111111-2222-3333-4444-555555555555";
    let esc = uid.replace('-', "_");
    let pod = format!("/kubepods/burstable/pod{uid}");
    let cases: Vec<(String, Value)> = vec![
        (
            format!("{pod}/{a}/docker/{b}/docker/{c}"),
            serde_json::json!({"container_id": a, "inner_container_id": c}),
        ),
        (
            format!("{pod}/{a}/kubepods/pod{uid2}/{b}"),
            serde_json::json!({"pod_uid": uid, "container_id": a, "inner_pod_uid": uid2,
                "inner_container_id": b, "qos": "burstable"}),
        ),
        (
            format!("{pod}/3386444d-afd4-5239-8a80-af5e5c1dc92f"),
            serde_json::json!({"container_id": "3386444d-afd4-5239-8a80-af5e5c1dc92f"}),
        ),
        (
            format!("/../../../besteffort/pod{uid}/{a}"),
            serde_json::json!({"pod_uid": uid, "qos": "besteffort", "container_id": a}),
        ),
        (
            format!("/kubepods-burstable-pod{esc}.slice:cri-containerd:{a}"),
            serde_json::json!({"pod_uid": uid, "qos": "burstable", "container_id": a,
                "runtime": "containerd"}),
        ),
        (
            format!("/kubepods-pod{esc}.slice:crio:{a}"),
            serde_json::json!({"qos": "guaranteed", "runtime": "cri-o"}),
        ),
        (
            format!("/my_root.slice/my_root-kubepods.slice/my_root-kubepods-pod{esc}.slice"),
            serde_json::json!({"pod_uid": uid, "qos": "guaranteed"}),
        ),
        (
            format!("/kubepods.slice/kubepods-pod{esc}.slice/crio-{a}"),
            serde_json::json!({"container_id": a, "role": "sandbox"}),
        ),
        (
            format!("/kubepods.slice/kubepods-pod{esc}.slice/crio-{a}.scope/container"),
            serde_json::json!({"container_id": a, "role": null}),
        ),
        (
            format!("{pod}/crio-{a}.mount"),
            serde_json::json!({"container_id": null, "pod_uid": uid}),
        ),
        (
            format!("{pod}/prefix{a}"),
            serde_json::json!({"container_id": null}),
        ),
        (
            format!("/crio/crio-{a}"),
            serde_json::json!({"orchestrator": "kubernetes", "container_id": a}),
        ),
        (
            format!("/libpod_parent/{a}/libpod-{b}"),
            serde_json::json!({"orchestrator": "podman", "container_id": b,
                "outer_container_id": null}),
        ),
        (
            format!("/machine.slice/machine-libpod_pod_{a}.slice"),
            serde_json::json!({"orchestrator": "podman", "container_id": null}),
        ),
        (
            format!("/kata_overhead/{a}"),
            serde_json::json!({"orchestrator": "kata", "container_id": a, "role": "sandbox"}),
        ),
        (
            "/ecs/5e2c7f3b1a9d4c8e9f0a1b2c3d4e5f60/5e2c7f3b1a9d4c8e9f0a1b2c3d4e5f60-1234567890"
                .into(),
            serde_json::json!({"orchestrator": "ecs", "runtime": null,
                "container_id": "5e2c7f3b1a9d4c8e9f0a1b2c3d4e5f60-1234567890"}),
        ),
        (
            format!("/nomad/{uid}.web"),
            serde_json::json!({"orchestrator": "nomad", "nomad_alloc": uid, "nomad_task": "web"}),
        ),
        (
            r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator".into(),
            serde_json::json!({"orchestrator": "libvirt", "container_id": null}),
        ),
        (
            format!("/lxc.payload.box/docker/{a}"),
            serde_json::json!({"orchestrator": "docker", "container_id": a,
                "outer_container_id": null}),
        ),
        (
            format!("/docker/{a}/user.slice/user-1000.slice/libpod-{b}.scope"),
            serde_json::json!({"container_id": b, "outer_container_id": a, "trusted": false}),
        ),
        (
            format!("{pod}/{a}/user.slice/session-1.scope"),
            serde_json::json!({"container_id": a, "trusted": null}),
        ),
        (
            "/system.slice/mycri-containerd.service".into(),
            serde_json::json!({"orchestrator": "systemd"}),
        ),
        ("/".into(), serde_json::json!({"orchestrator": "none"})),
    ];
    for (path, expect) in cases {
        let got = serde_json::to_value(parse(path.as_bytes())).unwrap();
        for (key, value) in expect.as_object().unwrap() {
            assert_eq!(
                got.get(key).unwrap_or(&Value::Null),
                value,
                "{key} of {path}"
            );
        }
    }
}

/// Every id of a claim must be found, whole, in some name of the path.
fn assert_ids_are_in(claim: &Claim, path: &[u8]) {
    let text = String::from_utf8_lossy(path).into_owned();
    let plain = text.replace('_', "-");
    let ids = [
        &claim.container_id,
        &claim.outer_container_id,
        &claim.inner_container_id,
        &claim.pod_uid,
        &claim.inner_pod_uid,
        &claim.nomad_alloc,
    ];
    for id in ids.into_iter().flatten() {
        if claim.orchestrator == Orchestrator::Nspawn {
            continue; // unescaped
        }
        let dashed = id.replace('_', "-");
        let whole = plain.split('/').any(|name| {
            name.match_indices(&dashed).any(|(at, _)| {
                let before = name[..at].chars().next_back();
                let after = name[at + dashed.len()..].chars().next();
                let hex = |c: Option<char>| c.is_some_and(|c| c.is_ascii_hexdigit());
                // "pod<uid>" is the one place where an id follows a letter; 'd' is a hex digit.
                (!hex(before) || name[..at].ends_with("pod")) && !hex(after)
            })
        });
        assert!(whole, "{id} is no whole part of {text}");
    }
}

fn hex(len: usize) -> impl Strategy<Value = String> {
    proptest::string::string_regex(&format!("[0-9a-f]{{{len}}}")).unwrap()
}

fn uid() -> impl Strategy<Value = String> {
    proptest::string::string_regex(
        "[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}",
    )
    .unwrap()
}

/// Names that matter, alone and damaged, so that random paths reach deep into the grammar.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let fixed = proptest::sample::select(vec![
        "kubepods",
        "burstable",
        "besteffort",
        "kubepods.slice",
        "kubepods-burstable.slice",
        "user.slice",
        "system.slice",
        "machine.slice",
        "docker",
        "ecs",
        "nomad",
        "lxc",
        "mesos",
        "garden",
        "good",
        "..",
        "",
        "init.scope",
        "libpod_parent",
        "k8s.io",
        "kata_overhead",
        "buildkit",
        "lxc.payload.x",
        "sys",
        "fs",
        "cgroup",
        "memory",
        "ecstasks.slice",
    ]);
    prop_oneof![
        4 => fixed.prop_map(|name| name.as_bytes().to_vec()),
        2 => uid().prop_map(|uid| format!("pod{uid}").into_bytes()),
        2 => uid().prop_map(|uid| format!("kubepods-burstable-pod{uid}.slice").into_bytes()),
        1 => (uid(), hex(64))
            .prop_map(|(uid, id)| format!("kubepods-pod{uid}.slice:cri-containerd:{id}").into_bytes()),
        1 => uid().prop_map(|uid| format!("{uid}.task.scope").into_bytes()),
        2 => hex(64).prop_map(String::into_bytes),
        1 => (60_usize..70).prop_flat_map(hex).prop_map(String::into_bytes),
        1 => hex(32).prop_map(|hash| format!("pod{hash}").into_bytes()),
        2 => hex(64).prop_map(|id| format!("cri-containerd-{id}.scope").into_bytes()),
        1 => hex(64).prop_map(|id| format!("crio-conmon-{id}").into_bytes()),
        1 => hex(64).prop_map(|id| format!("kata_{id}").into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(name(), 0..12).prop_map(|names| {
        let mut path = b"/".to_vec();
        path.extend(names.join(&b'/'));
        path
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_a_claim(bytes in proptest::collection::vec(any::<u8>(), 0..4200), cut: bool) {
        let claim = parse(&bytes);
        assert_ids_are_in(&claim, &bytes);
        parse_names(&bytes, cut);
        serde_json::to_string(&claim).unwrap();
    }

    #[test]
    fn names_and_path_agree(mut path in path()) {
        path.retain(|byte| *byte != 0);
        let names = path.split(|byte| *byte == b'/');
        prop_assume!(names.into_iter().all(|name| name != b"..") && !path.ends_with(b" (deleted)"));
        prop_assume!(!path.starts_with(b"/sys"));
        prop_assert_eq!(parse_names(&kernel_names(&path), false), parse(&path));
    }

    #[test]
    fn ids_are_whole_parts_of_names(path in path()) {
        assert_ids_are_in(&parse(&path), &path);
    }

    #[test]
    fn a_service_manager_inside_changes_nothing(path in path()) {
        let mut longer = path.clone();
        longer.extend_from_slice(b"/init.scope");
        // LXC's parent directory gives a meaning to whatever is below it.
        prop_assume!(!path.ends_with(b"/lxc") && !path.ends_with(b"/lxc/"));
        let (mut claim, base) = (parse(&longer), parse(&path));
        if base.orchestrator == Orchestrator::None && claim.orchestrator == Orchestrator::Systemd {
            claim.orchestrator = Orchestrator::None; // the path was empty
        }
        prop_assert_eq!(claim, base);
    }

    #[test]
    fn a_node_container_around_adds_only_itself(index in any::<prop::sample::Index>(), outer in hex(64)) {
        let (path, _) = index.get(&VECTORS);
        let base = parse(path.as_bytes());
        prop_assume!(path.starts_with('/') && !path.contains("..") && !path.starts_with("/sys/"));
        prop_assume!(base.container_id.is_some() || base.pod_uid.is_some());
        let mut expect = base;
        expect.outer_container_id = Some(outer.clone());
        let once = format!("/docker/{outer}{path}");
        let twice = format!("/docker/{outer}/docker/{}{path}", "0".repeat(64));
        prop_assert_eq!(parse(once.as_bytes()), expect.clone());
        prop_assert_eq!(parse(twice.as_bytes()), expect);
    }
}
