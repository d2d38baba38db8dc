//! Short texts for people, shared by verdicts and the terminal. Nothing is escaped here.

use super::{Cgroup, Container, K8s, Process};

/// Bytes in binary units, as "512 MiB" or "1.5 GiB".
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // In tenths of the unit, rounded, so that 1023.97 MiB is 1 GiB and not 1024 MiB.
    let in_unit = |unit: usize| {
        let shift = 10 * (unit + 1);
        ((u128::from(bytes) * 10) + (1 << (shift - 1))) >> shift
    };
    let unit = (0..UNITS.len() - 1)
        .find(|&unit| in_unit(unit) < 10_235)
        .unwrap_or(UNITS.len() - 1);
    let tenths = in_unit(unit);
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if tenth == 0 || whole >= 100 {
        format!("{} {}", (tenths + 5) / 10, UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

/// A share in whole percent, as "97 %"; "?" if the whole is 0.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "?".to_owned();
    }
    let percent = (u128::from(part) * 100 + u128::from(whole) / 2) / u128::from(whole);
    if percent == 0 && part > 0 {
        "<1 %".to_owned()
    } else {
        format!("{percent} %")
    }
}

/// A stretch of time in the unit a person would choose, as "12 min".
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Who owns a process or a limit: "namespace/pod/container", else what is known of it.
pub fn subject(
    k8s: Option<&K8s>,
    container: Option<&Container>,
    cgroup: Option<&Cgroup>,
) -> Option<String> {
    if let Some(label) = k8s.and_then(pod) {
        let name = k8s.and_then(|k8s| k8s.container.as_ref()?.name.as_deref());
        return Some(match name.or_else(|| container?.role.as_deref()) {
            Some(name) => format!("{label}/{name}"),
            None => label,
        });
    }
    let of_container = container.and_then(|container| {
        let id: String = container.id.as_deref()?.chars().take(12).collect();
        Some(format!(
            "{} container {id}",
            container.runtime.as_deref().unwrap_or("a")
        ))
    });
    of_container.or_else(|| cgroup?.path.clone())
}

/// The pod: "namespace/name", else its UID.
pub fn pod(k8s: &K8s) -> Option<String> {
    match (&k8s.namespace.name, &k8s.pod.name, &k8s.pod.uid) {
        (Some(namespace), Some(name), _) => Some(format!("{namespace}/{name}")),
        (None, Some(name), _) => Some(name.clone()),
        (_, None, Some(uid)) => Some(format!("pod {uid}")),
        (_, None, None) => None,
    }
}

/// A process: "comm (pid 123)".
pub fn process(process: &Process) -> String {
    let comm = process.comm.as_deref().unwrap_or("?");
    match process.pid {
        Some(pid) => format!("{comm} (pid {pid})"),
        None => comm.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_the_unit_a_person_would_choose() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (4096, "4 KiB"),
            (512 << 20, "512 MiB"),
            (1536 << 20, "1.5 GiB"),
            ((1 << 30) - 1, "1 GiB"),
            (1_000_000_000, "954 MiB"),
            (100 << 30, "100 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(value), text, "{value}");
        }
    }

    #[test]
    fn times() {
        let cases = [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (200_000, "2 days"),
        ];
        for (seconds, text) in cases {
            assert_eq!(ago(seconds), text);
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent(97, 100), "97 %");
        assert_eq!(percent(1, 1000), "<1 %");
        assert_eq!(percent(0, 1000), "0 %");
        assert_eq!(percent(1, 0), "?");
    }
}
