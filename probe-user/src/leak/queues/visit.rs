//! Goes through the namespaces in a thread of its own, which ends: no other thread ever changes
//! its namespace, and a kernel that does not answer holds up nobody.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::netns;
use super::reading::{self, Reading};
use super::tcp::Unowned;
use crate::event::queues::Namespace;

/// Time between two readings of what should move.
const INTERVAL: Duration = Duration::from_millis(500);

/// With less than this in the buffers of all TCP sockets, none of them matters.
const TCP_BYTES: u64 = 16 << 20;

/// Most time spent on TCP connections, of all namespaces.
const TCP_TIME: Duration = Duration::from_secs(1);

/// What came back from the namespaces.
#[derive(Debug, Default)]
pub(super) struct Visited {
    /// By inode: the first reading, and the second where something should move.
    pub(super) readings: BTreeMap<u64, (Reading, Option<Reading>)>,
    /// Namespaces that could not be entered, and why.
    pub(super) not_entered: Vec<(u64, String)>,
    /// Namespaces that ended since they were found.
    gone: BTreeSet<u64>,
}

enum Visit {
    First(u64, Box<Reading>),
    Tcp(u64, Result<Unowned, String>),
    Second(u64, Box<Reading>),
    NotEntered(u64, String),
    Gone(u64),
}

/// Reads all `namespaces`. Returns at the deadline with what there is by then.
pub(super) fn all(namespaces: &[Namespace], host_root: &Path, deadline: Instant) -> Visited {
    let (sender, receiver) = mpsc::channel();
    let (targets, host_root) = (namespaces.to_vec(), host_root.to_owned());
    let spawned = thread::Builder::new()
        .name("oomprobe-netns".to_owned())
        .spawn(move || go(targets, &host_root, deadline, &sender));
    let mut visited = Visited::default();
    if let Err(error) = spawned {
        let why = format!("no thread: {error}");
        let failed = namespaces
            .iter()
            .map(|namespace| (namespace.inode, why.clone()));
        visited.not_entered = failed.collect();
        return visited;
    }
    collect(&receiver, deadline, &mut visited);
    let missing = namespaces
        .iter()
        .map(|namespace| namespace.inode)
        .filter(|inode| {
            !visited.readings.contains_key(inode)
                && !visited.gone.contains(inode)
                && !visited.not_entered.iter().any(|(other, _)| other == inode)
        });
    let missing: Vec<_> = missing
        .map(|inode| (inode, "no time left".to_owned()))
        .collect();
    visited.not_entered.extend(missing);
    visited
}

fn collect(receiver: &Receiver<Visit>, deadline: Instant, visited: &mut Visited) {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // The thread is gone, or there is no time left.
        let Ok(visit) = receiver.recv_timeout(left) else {
            return;
        };
        match visit {
            Visit::First(inode, reading) => {
                visited.readings.insert(inode, (*reading, None));
            }
            Visit::Tcp(inode, read) => {
                if let Some((first, _)) = visited.readings.get_mut(&inode) {
                    match read {
                        Ok(tcp) => first.tcp = tcp,
                        Err(why) => first.failed.push(("TCP connections without a file", why)),
                    }
                }
            }
            Visit::Second(inode, reading) => {
                if let Some((first, second)) = visited.readings.get_mut(&inode) {
                    // What was read in part looks as if it had become empty.
                    if reading.failed.is_empty() {
                        *second = Some(*reading);
                    } else {
                        first.failed.extend(reading.failed);
                    }
                }
            }
            Visit::Gone(inode) => {
                visited.gone.insert(inode);
            }
            Visit::NotEntered(inode, why) => visited.not_entered.push((inode, why)),
        }
    }
}

/// Sends what it reads until there is no more, no time left or nobody who wants it.
fn go(targets: Vec<Namespace>, host_root: &Path, deadline: Instant, to: &Sender<Visit>) {
    let mut visitor = Visitor {
        host_root,
        deadline,
        to,
        again: Vec::new(),
        with_tcp: Vec::new(),
        tcp_memory_pages: 0,
    };
    let _ = visitor.first(targets).and_then(|()| {
        visitor.tcp()?;
        visitor.second()
    });
}

/// Why to stop.
struct Stop;

struct Visitor<'a> {
    host_root: &'a Path,
    deadline: Instant,
    to: &'a Sender<Visit>,
    /// Where something should move, and when that was read.
    again: Vec<(Namespace, Instant)>,
    /// Namespaces with TCP sockets, and how many.
    with_tcp: Vec<(u64, Namespace)>,
    tcp_memory_pages: u64,
}

impl Visitor<'_> {
    fn first(&mut self, mut targets: Vec<Namespace>) -> Result<(), Stop> {
        // Our own needs no privilege to enter, but only as long as no other was.
        let own = netns::own();
        targets.sort_by_key(|namespace| Some(namespace.inode) != own);
        for namespace in targets {
            let visit = match self.enter(&namespace)? {
                Ok(()) => {
                    let reading = Reading::whole(self.deadline);
                    let inode = namespace.inode;
                    self.tcp_memory_pages =
                        (self.tcp_memory_pages).max(reading.ipv4.tcp_memory_pages.unwrap_or(0));
                    if reading.tcp_sockets() > 0 {
                        self.with_tcp
                            .push((reading.tcp_sockets(), namespace.clone()));
                    }
                    if let Some(at) = reading.at.filter(|_| reading.may_move()) {
                        self.again.push((namespace, at));
                    }
                    Visit::First(inode, Box::new(reading))
                }
                Err(error) if is_gone(&namespace, &error) => Visit::Gone(namespace.inode),
                Err(error) => Visit::NotEntered(namespace.inode, why(&error)),
            };
            self.send(visit)?;
        }
        Ok(())
    }

    /// The kernel looks through its table of all connections for each namespace: milliseconds to
    /// tens of them. So not where TCP holds little, and those with the most sockets first.
    fn tcp(&mut self) -> Result<(), Stop> {
        let page_bytes = rustix::param::page_size() as u64;
        if self.tcp_memory_pages.saturating_mul(page_bytes) < TCP_BYTES {
            return Ok(());
        }
        let until = self.deadline.min(Instant::now() + TCP_TIME);
        self.with_tcp.sort_by_key(|(sockets, _)| Reverse(*sockets));
        for (_, namespace) in std::mem::take(&mut self.with_tcp) {
            let read = if Instant::now() >= until {
                Err("takes too long".to_owned())
            } else if self.enter(&namespace)?.is_err() {
                continue;
            } else {
                reading::tcp(until).map_err(|error| error.to_string())
            };
            self.send(Visit::Tcp(namespace.inode, read))?;
        }
        Ok(())
    }

    fn second(&mut self) -> Result<(), Stop> {
        for (namespace, first_at) in std::mem::take(&mut self.again) {
            let at = first_at + INTERVAL;
            if at >= self.deadline {
                return Err(Stop);
            }
            thread::sleep(at.saturating_duration_since(Instant::now()));
            // One that is gone meanwhile holds nothing any more.
            if self.enter(&namespace)?.is_ok() {
                let second = Box::new(Reading::moving(self.deadline));
                self.send(Visit::Second(namespace.inode, second))?;
            }
        }
        Ok(())
    }

    fn enter(&self, namespace: &Namespace) -> Result<io::Result<()>, Stop> {
        if Instant::now() >= self.deadline {
            return Err(Stop);
        }
        Ok(netns::enter(namespace, self.host_root))
    }

    fn send(&self, visit: Visit) -> Result<(), Stop> {
        self.to.send(visit).map_err(|_| Stop)
    }
}

/// Whether it ended with its processes. One that is mounted lives on, wherever that is.
fn is_gone(namespace: &Namespace, error: &io::Error) -> bool {
    namespace.mounted_at.is_none()
        && (error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH))
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error}: needs CAP_SYS_ADMIN, CAP_SYS_PTRACE"),
        io::ErrorKind::NotFound => {
            format!("{error}: needs the host's PID namespace, or its root as --host-root")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_in_part_is_not_taken_for_empty() {
        let (sender, receiver) = mpsc::channel();
        let torn = Reading {
            failed: vec![("nfqueues", "line 1: torn".to_owned())],
            ..Reading::default()
        };
        let orphans = || {
            let mut tcp = Unowned::default();
            tcp.orphans.sockets = 3;
            tcp
        };
        for visit in [
            Visit::First(1, Box::default()),
            Visit::First(2, Box::default()),
            Visit::Tcp(1, Ok(orphans())),
            Visit::Tcp(2, Err("takes too long".to_owned())),
            Visit::Second(1, Box::new(torn)),
            Visit::Second(2, Box::default()),
            Visit::NotEntered(3, "no".to_owned()),
            Visit::Gone(4),
            // Of what was never read.
            Visit::Second(5, Box::default()),
        ] {
            sender.send(visit).unwrap();
        }
        drop(sender);
        let mut visited = Visited::default();
        let deadline = Instant::now() + Duration::from_secs(600);
        collect(&receiver, deadline, &mut visited);

        let (first, second) = &visited.readings[&1];
        assert_eq!((first.tcp.clone(), second), (orphans(), &None));
        assert_eq!(first.failed.len(), 1);
        let (first, second) = &visited.readings[&2];
        assert_eq!(first.failed[0].1, "takes too long");
        assert!(second.is_some());
        assert!(!visited.readings.contains_key(&5));
        assert_eq!(visited.not_entered, [(3, "no".to_owned())]);
        assert!(visited.gone.contains(&4));
    }

    #[test]
    fn what_ended_meanwhile_is_not_told_but_what_is_mounted_elsewhere_is() {
        let root = tempfile::tempdir().unwrap();
        let with_process = Namespace {
            inode: 1,
            processes: 1,
            pids: vec![4_000_000_000],
            mounted_at: None,
        };
        let mounted = Namespace {
            inode: 2,
            mounted_at: Some("/run/netns/cni-1".to_owned()),
            ..Namespace::default()
        };
        let deadline = Instant::now() + Duration::from_secs(600);
        let visited = all(&[with_process, mounted], root.path(), deadline);
        assert!(visited.readings.is_empty());
        let [(inode, why)] = visited.not_entered.try_into().unwrap();
        assert_eq!(inode, 2);
        assert!(why.contains("--host-root"), "{why}");
    }

    #[test]
    fn what_is_not_reached_in_time_is_told() {
        let namespace = Namespace {
            inode: 7,
            ..Namespace::default()
        };
        let visited = all(&[namespace], Path::new("/"), Instant::now());
        assert_eq!(visited.not_entered, [(7, "no time left".to_owned())]);
    }
}
