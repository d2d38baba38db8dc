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

/// A share of 1 in percent, as "12 %"; "0.4 %" where it is small.
pub fn ratio(ratio: f64) -> String {
    let percent = ratio * 100.0;
    if percent > 0.0 && percent < 9.95 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// Bytes per second, as "3.1 MiB/s".
pub fn rate(bytes_per_s: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and has no sign"
    )]
    let whole = bytes_per_s.abs().round() as u64;
    let sign = if bytes_per_s < 0.0 { "-" } else { "" };
    format!("{sign}{}/s", bytes(whole))
}

/// A length of time in the unit a person would choose: "120 ms", "4.2 s", "12 min", "3.5 h".
pub fn seconds(seconds: f64) -> String {
    match seconds {
        ..0.9995 => format!("{:.0} ms", seconds.max(0.0) * 1000.0),
        ..9.95 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

/// The same of whole seconds.
pub fn ago(whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a time for a person")]
    let whole = whole as f64;
    match whole {
        ..1.0 => "0 s".to_owned(),
        _ => seconds(whole),
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
    fn rates_and_times() {
        assert_eq!(ratio(0.123), "12 %");
        assert_eq!(ratio(0.004), "0.4 %");
        assert_eq!(ratio(0.0), "0 %");
        assert_eq!(rate(3.1 * 1_048_576.0), "3.1 MiB/s");
        assert_eq!(rate(-2048.0), "-2 KiB/s");
        for (value, text) in [
            (0.0123, "12 ms"),
            (4.21, "4.2 s"),
            (90.0, "90 s"),
            (600.0, "10 min"),
            (9000.0, "2.5 h"),
            (1e6, "12 days"),
            (f64::INFINITY, "inf days"),
        ] {
            assert_eq!(seconds(value), text);
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
