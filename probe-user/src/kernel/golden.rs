//! The layout of every supported kernel, resolved from stored subsets of their BTF.
//!
//! `tests/btf/<kernel>.btf` holds the structs [`layout`] asks for, whole, so that a new row in the
//! table seldom needs new files; `<kernel>.json` is the layout expected from them. To renew both,
//! run `OOMPROBE_BTF_DIR=<dir> cargo test -p probe-user bless_golden_layouts -- --ignored` with
//! each kernel's raw BTF at `<dir>/<kernel>/btf` and its release in `<dir>/<kernel>/kernel.json`,
//! as the cache of `cargo xtask vm` has them.

mod subset;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use probe_common::layout::KernelLayout;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    btf::{Btf, BtfError, Kind, Missing},
    layout::{self, FieldReport, LayoutReport},
};

/// `<kernel>.json`.
#[derive(Debug, Deserialize, Serialize)]
struct Golden {
    /// `uname -r` of the kernel the subset was taken from.
    release: String,
    /// Fields with their values, null where absent.
    layout: BTreeMap<String, Option<u32>>,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/btf")
}

/// Names of the kernels that have a stored subset.
fn kernels() -> Vec<String> {
    let mut kernels: Vec<_> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "btf"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    kernels.sort();
    kernels
}

fn bytes(kernel: &str) -> Vec<u8> {
    fs::read(directory().join(format!("{kernel}.btf"))).unwrap()
}

/// The stored types of `kernel`.
pub(super) fn btf(kernel: &str) -> Btf {
    Btf::from_bytes(bytes(kernel)).unwrap()
}

fn values(report: &LayoutReport) -> BTreeMap<String, Option<u32>> {
    report
        .fields
        .iter()
        .map(|field| (field.field.to_owned(), field.value))
        .collect()
}

fn field(kernel: &str, name: &str) -> FieldReport {
    let report = layout::resolve(&btf(kernel));
    report
        .fields
        .into_iter()
        .find(|field| field.field == name)
        .unwrap()
}

#[test]
fn every_kernel_of_the_matrix_is_stored() {
    let matrix = [
        "5.10", "6.1", "6.12", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3",
    ];
    let stored = kernels();
    for kernel in matrix {
        assert!(stored.iter().any(|stored| stored == kernel), "{kernel}");
    }
}

#[test]
fn every_kernel_resolves_to_its_golden_layout() {
    for kernel in kernels() {
        let report = layout::resolve(&btf(&kernel));
        report
            .layout()
            .unwrap_or_else(|error| panic!("{kernel}: {error}"));
        let expected = fs::read_to_string(directory().join(format!("{kernel}.json"))).unwrap();
        let expected: Golden = serde_json::from_str(&expected).unwrap();
        assert_eq!(
            values(&report),
            expected.layout,
            "{kernel} {}",
            expected.release
        );
    }
}

#[test]
#[ignore = "rewrites the stored subsets from the raw BTF in OOMPROBE_BTF_DIR"]
fn bless_golden_layouts() {
    let source = std::env::var_os("OOMPROBE_BTF_DIR").expect("OOMPROBE_BTF_DIR is not set");
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let kernel = path.file_name().unwrap().to_str().unwrap();
        let described = fs::read(path.join("kernel.json")).unwrap();
        let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
        let full = Btf::from_file(&path.join("btf")).unwrap();
        let report = layout::resolve(&full);
        report
            .layout()
            .unwrap_or_else(|error| panic!("{kernel}: {error}"));

        let subset = subset::write(&full, &layout::references());
        let resolved = layout::resolve(&Btf::from_bytes(subset.clone()).unwrap());
        assert_eq!(resolved, report, "{kernel}");

        let release = described["release"].as_str().unwrap().to_owned();
        let golden = Golden {
            release,
            layout: values(&report),
        };
        let json = serde_json::to_string_pretty(&golden).unwrap() + "\n";
        fs::write(directory().join(format!("{kernel}.btf")), subset).unwrap();
        fs::write(directory().join(format!("{kernel}.json")), json).unwrap();
    }
}

#[test]
fn alternatives_are_reported_with_their_reason() {
    let old = field("5.10", "kernfs_node__parent");
    assert_eq!(old.source.as_deref(), Some("kernfs_node.parent"));
    assert!(old.because.contains("RCU"), "{}", old.because);

    let new = field("7.0", "kernfs_node__parent");
    assert_eq!(new.source.as_deref(), Some("kernfs_node.__parent"));
    assert_eq!(new.because, "");
}

#[test]
fn absence_is_reported_with_its_reason() {
    // Debian builds without MEMCG_V1 from 6.12 on.
    let absent = field("6.12", "mem_cgroup__under_oom");
    assert_eq!(absent.value, None);
    assert_eq!(
        absent.absent.as_deref(),
        Some("mem_cgroup has no member under_oom")
    );
}

#[test]
fn rss_is_plain_or_per_cpu() {
    let rss = |kernel: &str, member: &str| field(kernel, &format!("rss_stat__{member}")).value;
    assert_eq!(
        ["stride", "count", "percpu"].map(|m| rss("6.1", m)),
        [Some(8), Some(0), None]
    );
    assert_eq!(
        ["stride", "count", "percpu"].map(|m| rss("6.12", m)),
        [Some(40), Some(8), Some(32)]
    );
}

#[test]
fn tracepoint_forms_are_told_apart() {
    let victim = |kernel| field(kernel, "mark_victim__has_task").value;
    assert_eq!((victim("5.10"), victim("6.1")), (Some(0), Some(1)));
    let exit = |kernel| field(kernel, "sched_process_exit__has_group_dead").value;
    assert_eq!((exit("6.12"), exit("6.16")), (Some(0), Some(1)));
}

#[test]
fn a_missing_required_field_is_named() {
    let report = layout::resolve(&Btf::from_bytes(subset::empty()).unwrap());
    let error = report.layout().unwrap_err().to_string();
    assert!(
        error.contains("task_struct__pid (no struct task_struct)"),
        "{error}"
    );
    assert!(!error.contains("mem_cgroup__css"), "{error}");
}

#[test]
fn queries_say_what_they_lack() {
    let btf = btf("6.1");
    let missing = |path| btf.field("task_struct", path).unwrap_err();
    let member = |ty: &str, member: &str| (ty.to_owned(), member.to_owned());
    let (ty, name) = member("task_struct", "nonesuch");
    assert_eq!(missing("nonesuch"), Missing::Member { ty, member: name });
    let (ty, name) = member("task_struct", "in_user_fault");
    assert_eq!(
        missing("in_user_fault"),
        Missing::Bitfield { ty, member: name }
    );
    assert!(matches!(
        btf.parameters("task_struct"),
        Err(Missing::Type { .. })
    ));
    assert!(matches!(btf.size("nonesuch"), Err(Missing::Type { .. })));
    assert!(matches!(
        btf.enumerator("MEMCG_NONESUCH"),
        Err(Missing::Type { .. })
    ));
    assert!(btf.has_struct("task_struct") && !btf.has_func("task_struct"));
}

#[test]
fn members_of_anonymous_unions_are_direct() {
    let btf = btf("6.1");
    let offset = |path| btf.field("mem_cgroup", path).unwrap().offset;
    assert_eq!(offset("swap"), offset("memsw"));
}

#[test]
fn another_reader_sees_the_same_types() {
    for kernel in kernels() {
        let (ours, theirs) = (
            btf(&kernel),
            btf_rs::Btf::from_bytes(&bytes(&kernel)).unwrap(),
        );
        for id in 1..=u32::try_from(ours.type_count()).unwrap() {
            let (our, their) = (
                ours.get(id).unwrap(),
                theirs.resolve_type_by_id(id).unwrap(),
            );
            match their {
                btf_rs::Type::Struct(their) | btf_rs::Type::Union(their) => {
                    assert_eq!(our.size().map(|size| size as usize), Some(their.size()));
                    let members: Vec<_> = our
                        .members()
                        .map(|member| (member.name, member.bit_offset, member.bitfield_bits))
                        .collect();
                    let names: Vec<_> = their
                        .members
                        .iter()
                        .map(|m| theirs.resolve_name(m).unwrap())
                        .collect();
                    let expected: Vec<_> = std::iter::zip(&their.members, &names)
                        .map(|(member, name)| {
                            let bits = member.bitfield_size().unwrap_or(0);
                            (name.as_bytes(), member.bit_offset(), bits)
                        })
                        .collect();
                    assert_eq!(members, expected, "{kernel} {our:?}");
                }
                btf_rs::Type::Enum(their) => {
                    let values: Vec<_> = our.enumerators().map(|(_, value)| value).collect();
                    let expected: Vec<_> = their
                        .members
                        .iter()
                        .map(|member| i64::from(member.val()))
                        .collect();
                    assert_eq!(values, expected, "{kernel} {our:?}");
                }
                btf_rs::Type::Array(their) => {
                    assert_eq!(our.array_len().map(|len| len as usize), Some(their.len()));
                }
                btf_rs::Type::Ptr(_) => assert_eq!(our.kind(), Kind::Ptr),
                btf_rs::Type::FuncProto(_) => assert_eq!(our.kind(), Kind::FuncProto),
                _ => {}
            }
        }
    }
}

#[test]
fn torn_files_are_refused() {
    let whole = bytes("6.12");
    for len in 0..whole.len() {
        let torn = Btf::from_bytes(whole[..len].to_vec());
        assert!(
            matches!(torn, Err(BtfError::Malformed(_))),
            "{len} bytes: {torn:?}"
        );
    }
}

#[test]
fn types_that_never_end_are_refused() {
    let looped = Btf::from_bytes(subset::looped()).unwrap();
    assert!(matches!(
        looped.field("knot", "absent"),
        Err(Missing::Member { .. })
    ));
    assert!(matches!(
        looped.field("knot", "typedef"),
        Err(Missing::Malformed(_))
    ));
}

proptest! {
    #[test]
    fn flipped_bits_neither_panic_nor_hang(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..8),
    ) {
        let mut bytes = bytes("6.12");
        for (index, bit) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(btf) = Btf::from_bytes(bytes) {
            let report = layout::resolve(&btf);
            prop_assert_eq!(report.fields.len(), KernelLayout::FIELDS.len());
        }
    }
}
