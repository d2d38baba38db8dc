//! Objects from allocation to free on the running kernel, with traffic of this process: run as root,
//! here or in a guest.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use oomprobe::event::{Body, Outstanding};
use oomprobe::leak::track::{self, What};

/// Datagrams that are left unread: fewer than a socket takes by default.
const UNREAD: u64 = 150;

/// Datagrams of each kind that are read.
const READ: u64 = 20_000;

/// Files that are held open.
const FILES: usize = 400;

/// Time in which what is freed late gets its end.
const AFTER: Duration = Duration::from_secs(3);

/// One test at a time: each sees what the others do.
static ALONE: Mutex<()> = Mutex::new(());

/// What is not freed after `work`, which runs once the hooks are attached; `None` where this process
/// may not attach any.
fn outstanding<T: Send + 'static>(
    what: What,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<(Outstanding, T)> {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: not root");
        return None;
    }
    let options = track::Options {
        host_root: PathBuf::from("/"),
        cri_socket: None,
        what,
        sample_bits: 0,
        duration: None,
        min_age: Duration::from_millis(500),
        top: 50,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (done, stop) = tokio::sync::oneshot::channel();
    let (handle, wait) = std::sync::mpsc::channel();
    let ready = move || {
        let worker = thread::spawn(move || {
            let result = work();
            thread::sleep(AFTER);
            let _ = done.send(());
            result
        });
        handle.send(worker).unwrap();
    };
    let stop = async {
        stop.await.unwrap();
    };
    let event = match runtime.block_on(track::run(&options, stop, ready)) {
        Ok(event) => event,
        Err(error) if error.is_unsupported() => {
            eprintln!("skipped: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let result = wait.recv().unwrap().join().unwrap();
    let (Body::SkbOutstanding(outstanding) | Body::SlabOutstanding(outstanding)) = event.body
    else {
        panic!("another event");
    };
    eprintln!(
        "{:#?}\nhooks {:?}\nrefused {:?}\n{} objects, {} young, slab {:?}",
        outstanding.accuracy,
        outstanding.hooks,
        outstanding.refused,
        outstanding.objects,
        outstanding.young_objects,
        outstanding.slab_growth_objects
    );
    Some((*outstanding, result))
}

/// Objects that this process allocated.
fn own(outstanding: &Outstanding) -> u64 {
    let own = outstanding.stacks.iter();
    own.filter(|stack| stack.pid == Some(std::process::id()))
        .inspect(|stack| eprintln!("{} of {:?}", stack.objects, stack.stack))
        .map(|stack| stack.objects)
        .sum()
}

/// Whether the hooks see every buffer, or only what passes through the slab cache.
fn sees_all(outstanding: &Outstanding) -> bool {
    let is_whole = |hook: &String| hook.ends_with("skb_release_head_state");
    outstanding.hooks.iter().any(is_whole)
}

fn pair() -> (UdpSocket, UdpSocket) {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    (sender, receiver)
}

#[test]
fn what_is_read_is_not_outstanding() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        let (sender, receiver) = pair();
        let (here, there) = UnixDatagram::pair().unwrap();
        let mut buffer = [0; 400];
        for _ in 0..READ {
            sender.send(&buffer).unwrap();
            receiver.recv(&mut buffer).unwrap();
            here.send(&buffer).unwrap();
            there.recv(&mut buffer).unwrap();
        }
    };
    let Some((outstanding, ())) = outstanding(What::Skb, work) else {
        return;
    };
    let accuracy = &outstanding.accuracy;
    assert!(!outstanding.blind_spots.is_empty());
    assert_eq!(accuracy.no_room, 0);
    if sees_all(&outstanding) {
        assert!(accuracy.allocated >= 2 * READ, "{accuracy:?}");
        // Some are freed only when their processor has something else to do with buffers.
        assert!(own(&outstanding) <= 300, "{outstanding:#?}");
        assert!(accuracy.miss_ratio.unwrap() < 0.0005, "{accuracy:?}");
    }
}

#[test]
fn what_is_not_read_is_found_with_stack_and_cgroup() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        let (sender, receiver) = pair();
        for _ in 0..UNREAD {
            sender.send(&[0; 100]).unwrap();
        }
        (sender, receiver)
    };
    let Some((outstanding, sockets)) = outstanding(What::Skb, work) else {
        return;
    };
    drop(sockets);
    let udp: Vec<_> = outstanding
        .stacks
        .iter()
        .filter(|stack| stack.pid == Some(std::process::id()))
        .filter(|stack| {
            stack
                .stack
                .iter()
                .any(|frame| frame.starts_with("udp_sendmsg"))
        })
        .collect();
    let found: u64 = udp.iter().map(|stack| stack.objects).sum();
    own(&outstanding);
    if sees_all(&outstanding) {
        assert_eq!(found, UNREAD, "{udp:#?}");
        assert!(udp.iter().all(|stack| stack.cgroup.is_some()));
        assert!(udp.iter().all(|stack| !stack.in_interrupt));
    } else {
        assert!(found <= UNREAD + 50, "{udp:#?}");
    }
}

#[test]
fn objects_of_a_cache_are_found_and_gone_when_freed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let open = || -> Vec<std::fs::File> {
        let open = || std::fs::File::open("/proc/self/stat").unwrap();
        (0..FILES).map(|_| open()).collect()
    };
    let Some((held, files)) = outstanding(What::Kmalloc(4096), open) else {
        return;
    };
    drop(files);
    // Each such file has a seq_file of its own, and may have a buffer.
    eprintln!("{} held in kmalloc-4k", own(&held));
    let cache = What::Cache(b"task_struct".to_vec());
    let threads = || {
        let sleep = || thread::spawn(|| thread::sleep(3 * AFTER));
        (0..50).map(|_| sleep()).collect::<Vec<_>>()
    };
    let (held, threads) = outstanding(cache.clone(), threads).unwrap();
    assert_eq!(held.what, "task_struct");
    assert!((50..=60).contains(&own(&held)), "{held:#?}");
    for thread in threads {
        thread.join().unwrap();
    }
    let work = || {
        for _ in 0..50 {
            thread::spawn(|| ()).join().unwrap();
        }
    };
    let (gone, ()) = outstanding(cache, work).unwrap();
    assert!(gone.accuracy.allocated >= 50, "{gone:#?}");
    assert!(own(&gone) <= 5, "{gone:#?}");
}
