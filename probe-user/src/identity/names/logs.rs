//! Names from the log files the kubelet keeps: no socket, no privilege but reading `/var/log`.
//!
//! `/var/log/containers/<pod>_<namespace>_<container>-<id>.log` is a link to
//! `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restart>.log`. Both outlive the container.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::known::{Known, NameError, Source};

/// The kubelet cuts a link's name, the container id's tail first, to this before `.log`
/// (`logSymlink`, pkg/kubelet/kuberuntime/legacy.go).
const MAX_STEM: usize = 251;

/// A cut id needs this many digits to be one and not the tail of a container's name.
const MIN_ID_DIGITS: usize = 12;

/// Looks for the link of a container. `pod_uid` is what the cgroup path claims.
pub(super) fn container(
    log_root: &Path,
    id: &str,
    pod_uid: Option<&str>,
) -> Result<Option<Known>, NameError> {
    let dir = log_root.join("containers");
    let mut cut: Option<Known> = None;
    for entry in read_dir(&dir)? {
        let name = entry.file_name();
        let Some(link) = parse_link(name.as_bytes()) else {
            continue;
        };
        let whole = link.id == id;
        let fits = whole || link.is_cut && id.starts_with(link.id);
        if !fits {
            continue;
        }
        let known = follow(&entry.path(), &link);
        if whole {
            return Ok(Some(known));
        }
        let other_pod = pod_uid.is_some_and(|uid| known.pod_uid.as_deref() != Some(uid));
        if other_pod {
            continue;
        }
        // Two links that fit are no answer.
        if cut.replace(known).is_some() {
            return Ok(None);
        }
    }
    Ok(cut)
}

/// Looks for the log directory of a pod. It cannot tell which container an id belongs to.
pub(super) fn pod(log_root: &Path, uid: &str) -> Result<Option<Known>, NameError> {
    let dir = log_root.join("pods");
    for entry in read_dir(&dir)? {
        let name = entry.file_name();
        if let Some((namespace, pod, found)) = parse_pod_dir(name.as_bytes())
            && found == uid
        {
            return Ok(Some(Known {
                pod_name: Some(pod.to_owned()),
                namespace: Some(namespace.to_owned()),
                pod_uid: Some(uid.to_owned()),
                ..Known::by(Source::LogDir)
            }));
        }
    }
    Ok(None)
}

/// Entries of `dir`; none if it does not exist, as on a node without Kubernetes.
fn read_dir(dir: &Path) -> Result<impl Iterator<Item = fs::DirEntry>, NameError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let detail = format!("{}: {error}", dir.display());
            return Err(NameError::LogDirUnreadable(detail));
        }
    };
    Ok(entries.into_iter().flatten().flatten())
}

struct Link<'a> {
    pod: &'a str,
    namespace: &'a str,
    container: &'a str,
    id: &'a str,
    is_cut: bool,
}

/// `<pod>_<namespace>_<container>-<id>.log`
fn parse_link(name: &[u8]) -> Option<Link<'_>> {
    let stem = std::str::from_utf8(name).ok()?.strip_suffix(".log")?;
    let mut fields = stem.split('_');
    let (pod, namespace, rest) = (fields.next()?, fields.next()?, fields.next()?);
    let (container, id) = rest.rsplit_once('-')?;
    let named = [pod, namespace, container].into_iter().all(is_dns_name);
    let is_cut = stem.len() == MAX_STEM && id.len() < 64;
    let is_id = id.bytes().all(|byte| byte.is_ascii_hexdigit())
        && if is_cut {
            id.len() >= MIN_ID_DIGITS
        } else {
            id.len() == 64
        };
    (fields.next().is_none() && named && is_id).then_some(Link {
        pod,
        namespace,
        container,
        id,
        is_cut,
    })
}

/// Reads where the link points, which tells UID and restart count; nothing is opened.
fn follow(link_path: &Path, link: &Link<'_>) -> Known {
    let mut known = Known {
        pod_name: Some(link.pod.to_owned()),
        namespace: Some(link.namespace.to_owned()),
        container_name: Some(link.container.to_owned()),
        ..Known::by(Source::LogLink)
    };
    let Ok(target) = fs::read_link(link_path) else {
        return known;
    };
    let mut names = target.iter().rev().map(OsStr::as_bytes);
    let restart = names.next().and_then(restart_count);
    let container = names.next();
    let pod_dir = names.next().and_then(parse_pod_dir);
    if let Some((namespace, pod, uid)) = pod_dir
        && (namespace, pod) == (link.namespace, link.pod)
        && container == Some(link.container.as_bytes())
    {
        known.pod_uid = Some(uid.to_owned());
        known.restart_count = restart;
    }
    known
}

/// `<namespace>_<pod>_<uid>`
fn parse_pod_dir(name: &[u8]) -> Option<(&str, &str, &str)> {
    let mut fields = std::str::from_utf8(name).ok()?.splitn(3, '_');
    let (namespace, pod, uid) = (fields.next()?, fields.next()?, fields.next()?);
    (is_dns_name(namespace) && is_dns_name(pod) && !uid.is_empty()).then_some((namespace, pod, uid))
}

/// `<restart>.log`
fn restart_count(name: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(name).ok()?.strip_suffix(".log")?;
    digits.parse().ok()
}

/// What Kubernetes allows in names of pods, namespaces and containers (RFC 1123).
fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
}
