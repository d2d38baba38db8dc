//! The kubelet's configuration on this node.

use std::{fs, path::Path};

/// Where it is, below the host's root: kubeadm and most others, RKE2 and k3s, k0s, MicroK8s.
const FILES: [&str; 4] = [
    "var/lib/kubelet/config.yaml",
    "var/lib/rancher/rke2/agent/etc/kubelet.conf.d/00-rke2-defaults.conf",
    "var/lib/k0s/kubelet/config.yaml",
    "var/snap/microk8s/current/args/kubelet-config.yaml",
];

/// `memory.available` of `evictionHard` where the configuration has none
/// (pkg/kubelet/eviction/defaults_linux.go).
const DEFAULT_BYTES: u64 = 100 << 20;

/// Below how much available memory the kubelet evicts pods without delay; `None` if there is no
/// kubelet on this node, or its threshold cannot be read.
pub fn eviction_threshold_bytes(host_root: &Path, total_bytes: u64) -> Option<u64> {
    let config = FILES
        .iter()
        .find_map(|file| fs::read_to_string(host_root.join(file)).ok())?;
    match memory_available(&config) {
        Some(quantity) => bytes(quantity, total_bytes),
        None => Some(DEFAULT_BYTES),
    }
}

/// The value of `evictionHard.memory.available`, in block or flow style. Not a reader of YAML: the
/// kubelet's configuration is written by programs, and nothing else of it is needed.
fn memory_available(config: &str) -> Option<&str> {
    let mut lines = config
        .lines()
        .skip_while(|line| !line.starts_with("evictionHard:"));
    let first = lines.next()?;
    let block = lines.take_while(|line| line.starts_with([' ', '\t']) || line.trim().is_empty());
    std::iter::once(first)
        .chain(block)
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split(['{', ',', '}']))
        .find_map(|entry| {
            let (key, value) = entry.rsplit_once(':')?;
            let unquoted = |text: &'_ str| -> bool {
                text.trim().trim_matches(['"', '\'']) == "memory.available"
            };
            unquoted(key).then(|| value.trim().trim_matches(['"', '\'']))
        })
}

/// A quantity of Kubernetes (`100Mi`, `1G`, `104857600`) or a share of all memory (`5%`).
fn bytes(quantity: &str, total_bytes: u64) -> Option<u64> {
    if let Some(percent) = quantity.strip_suffix('%') {
        let share: f64 = percent.parse().ok()?;
        return (0.0..=100.0).contains(&share).then(|| {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a size, rounded to bytes"
            )]
            let bytes = (total_bytes as f64 * share / 100.0) as u64;
            bytes
        });
    }
    let digits = quantity
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(digits);
    let unit = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let total = 8 << 30;
        let rows = [
            (
                "apiVersion: kubelet.config.k8s.io/v1beta1\n",
                Some(100 << 20),
            ),
            (
                "evictionHard:\n  imagefs.available: 15%\n  memory.available: 200Mi\nfoo: 1\n",
                Some(200 << 20),
            ),
            (
                "evictionHard:\n\n    # memory.available: 1Gi\n    \"memory.available\": \"25%\"\n",
                Some(2 << 30),
            ),
            (
                "evictionHard: {nodefs.available: \"1%\", memory.available: 1G}\n",
                Some(1_000_000_000),
            ),
            // Another mapping's.
            (
                "evictionSoft:\n  memory.available: 1Gi\nevictionHard:\n  pid.available: 5%\nx:\n  memory.available: 2Gi\n",
                Some(100 << 20),
            ),
            ("evictionHard:\n  memory.available: lots\n", None),
            ("evictionHard:\n  memory.available: 200%\n", None),
        ];
        for (config, expected) in rows {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(eviction_threshold_bytes(root.path(), total), None);
            let path = root.path().join(FILES[0]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, config).unwrap();
            assert_eq!(
                eviction_threshold_bytes(root.path(), total),
                expected,
                "{config}"
            );
        }
    }
}
