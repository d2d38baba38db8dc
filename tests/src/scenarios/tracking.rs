//! Kernel objects followed from allocation to free.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::expect::{at, equal};
use crate::following::Following;
use crate::hog::{Hog, Spec};
use crate::scenario::{Context, Need, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_track_mixed",
        "buffers of busy and healthy traffic of all sorts are followed to their end",
        mixed,
    )
    .needs(&[Need::Tracer])
    .seconds(120),
    Scenario::new(
        "skb_track_million",
        "a million buffers of such traffic, in a guest",
        million,
    )
    .needs(&[Need::Tracer, Need::Guest])
    .slow()
    .seconds(600),
    Scenario::new(
        "skb_track_leak",
        "a capture that is never read, seen from the first packet",
        leak,
    )
    .needs(&[Need::Tracer])
    .seconds(120),
    Scenario::new(
        "skb_track_overflow",
        "a leak of more than the table has room for, told of by a sparser sample",
        overflow,
    )
    .needs(&[Need::Tracer])
    .seconds(180),
    Scenario::new(
        "slab_track_holder",
        "who allocates from a cache, and that all of it is freed in the end",
        holder,
    )
    .needs(&[Need::Tracer])
    .seconds(120),
];

/// Rounds of traffic: a million buffers, or what a guest without virtualisation manages in seconds.
const ROUNDS: u32 = 90_000;
const GUEST_ROUNDS: u32 = 3_000;

/// Buffers of one round, at least: UDP with two clones for the capture and one for the raw socket; TCP
/// with the one it keeps until it is acknowledged, the clone that goes out and that one's for the
/// capture; two of unix sockets; three of netlink.
const BUFFERS_A_ROUND: u64 = 12;

/// Frames that wait in the capture: 73 MiB. One in 64 is enough to tell of.
const FRAMES: u64 = 60_000;

/// Objects that are followed where one of 64 is: three hundredths of a relative error.
const SAMPLE: u64 = 64;

/// Frames of which one in two is half as many again as the table has room for: 244 MiB.
const MANY_FRAMES: u64 = 200_000;

/// Objects of a sample that there is room for.
const ROOM: u64 = 65_536;

/// Pairs of sockets of the holder.
const PAIRS: u64 = 150;

/// Frees that hooks on the functions themselves may miss.
const MISSED: f64 = 0.0005;

/// For what the kernel frees late: after a grace period of RCU, or with a network namespace.
const SETTLE: Duration = Duration::from_secs(5);

/// Whether the hooks in use see all that is freed, by their own word.
fn sees_all(event: &Value) -> bool {
    let hooks = at(event, "hooks").as_array().into_iter().flatten();
    let mut hooks = hooks.filter_map(Value::as_str);
    hooks.any(|hook| hook.starts_with("fentry:") || hook.starts_with("kprobe:"))
}

fn count(event: &Value, path: &str) -> Result<u64> {
    let count = at(event, path).as_u64();
    count.with_context(|| format!("{path}: {event}"))
}

/// Frees that the report itself says it did not see: those that came in an interrupt of a program that
/// saw another, and those of large bulk operations.
fn unseen(event: &Value) -> Result<u64> {
    // Older kernels do not count the former.
    let skipped = at(event, "accuracy.skipped_runs").as_u64().unwrap_or(0);
    Ok(skipped + count(event, "accuracy.busy")? + count(event, "accuracy.bulk_cut")?)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn approx(count: u64) -> f64 {
    count as f64
}

/// Objects of a cache in use, and in its slabs at all, by the kernel's count.
fn slab(cache: &str) -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/slabinfo").context("slabinfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(cache)?.strip_prefix(' '));
    let mut numbers = line
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(in_use)), Some(Ok(all))) => Ok((in_use, all)),
        _ => anyhow::bail!("no {cache} in slabinfo"),
    }
}

/// Objects that are free and count as in use in slabinfo: what each processor keeps at hand, in its
/// slabs and in its cache of buffers.
fn noise(cache: &str) -> Result<u64> {
    /// Buffers of the cache for NAPI and of the list of those that another processor is to free, at
    /// most (`NAPI_SKB_CACHE_SIZE`, `skb_defer_max`).
    const AT_HAND: u64 = 2 * 128;
    let read = |name: &str| -> Option<u64> {
        let file = format!("/sys/kernel/slab/{cache}/{name}");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    let processors = std::thread::available_parallelism().context("processors")?;
    let a_slab = read("objs_per_slab").context("objects of a slab")?;
    // Of what newer kernels keep instead of partial slabs, each processor has two sheaves.
    let kept = 2 * read("cpu_partial").or(read("sheaf_capacity")).unwrap_or(0);
    Ok(processors.get() as u64 * (a_slab + kept + AT_HAND))
}

/// What is told of stacks on which this process allocated, outside of interrupts.
struct Of {
    objects: u64,
    bytes: u64,
    frames: Vec<String>,
}

impl Of {
    fn process(event: &Value, pid: i32) -> Result<Self> {
        let stacks = at(event, "stacks").as_array().context("stacks")?;
        let mut of = Self {
            objects: 0,
            bytes: 0,
            frames: Vec::new(),
        };
        for stack in stacks.iter().filter(|stack| at(stack, "pid") == pid) {
            of.objects += count(stack, "objects")?;
            of.bytes += at(stack, "bytes").as_u64().unwrap_or(0);
            if of.frames.is_empty() {
                let frames = at(stack, "stack").as_array().into_iter().flatten();
                of.frames = frames
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect();
            }
        }
        Ok(of)
    }

    /// Fails unless a function whose name begins so is on its biggest stack.
    fn came_by(&self, functions: &[&str]) -> Result<()> {
        let is_known = |frame: &String| functions.iter().any(|name| frame.starts_with(name));
        ensure!(
            self.frames.iter().any(is_known),
            "none of {functions:?} is in {:?}",
            self.frames
        );
        Ok(())
    }
}

/// The cgroup of what a process allocated is the scenario's.
fn is_in_scratch(context: &Context, event: &Value, pid: i32) -> Result<()> {
    let path = context.scratch.kernel_path();
    let stacks = at(event, "stacks").as_array().into_iter().flatten();
    for stack in stacks.filter(|stack| at(stack, "pid") == pid) {
        equal(stack, "cgroup.path", path.to_str().context("path")?)?;
    }
    let cgroups = at(event, "cgroups").as_array().into_iter().flatten();
    let mut paths = cgroups.map(|cgroup| at(cgroup, "cgroup.path"));
    let told = paths.any(|told| told.as_str() == path.to_str());
    ensure!(told, "the cgroup is not told: {event}");
    Ok(())
}

fn follow(context: &Context, arguments: &[&str]) -> Result<Following> {
    let all = [arguments, &["--top", "1000"]].concat();
    Following::start(context.oomprobe()?, &all)
}

fn held(context: &Context, workload: &[&str]) -> Result<Hog> {
    let spec = Spec::inside(&context.scratch).held();
    spec.start(workload, context.deadline)
}

fn mixed(context: &mut Context) -> Result<()> {
    let rounds = if context.is_guest {
        GUEST_ROUNDS
    } else {
        ROUNDS
    };
    traffic(context, rounds)
}

fn million(context: &mut Context) -> Result<()> {
    traffic(context, ROUNDS)
}

fn traffic(context: &mut Context, rounds: u32) -> Result<()> {
    const CACHE: &str = "skbuff_head_cache";
    let mut hog = held(context, &["traffic", &rounds.to_string()])?;
    let following = follow(context, &["skb", "--track", "--sample", "1"])?;
    let (before, _) = slab(CACHE)?;
    hog.go()?;
    let status = hog.wait(context.deadline)?;
    ensure!(status.success(), "the traffic: {status}");
    std::thread::sleep(SETTLE);
    let (after, all) = slab(CACHE)?;
    let event = following.stop(context.deadline)?;
    equal(&event, "kind", "skb_outstanding")?;
    equal(&event, "sample", 1)?;

    let outstanding = count(&event, "objects")?;
    let allocated = count(&event, "accuracy.allocated")?;
    let missed = count(&event, "accuracy.reused")?;
    let unseen = unseen(&event)?;
    equal(&event, "accuracy.no_room", 0)?;
    if sees_all(&event) {
        let made = u64::from(rounds) * BUFFERS_A_ROUND;
        ensure!(allocated >= made, "{allocated} of {made} buffers were seen");
        let ratio = at(&event, "accuracy.miss_ratio").as_f64();
        ensure!(
            ratio < Some(MISSED),
            "{ratio:?} of the frees missed: {event}"
        );
        let of_hog = Of::process(&event, hog.pid())?.objects;
        ensure!(
            approx(of_hog) <= approx(made) * MISSED + approx(unseen),
            "{of_hog} of a process that is gone: {event}"
        );
        let grown = after.saturating_sub(before);
        let noise = noise(CACHE)?;
        ensure!(
            outstanding.abs_diff(grown) <= noise + missed + unseen,
            "{outstanding} outstanding, {grown} by slabinfo, which may be off by {noise}: {event}"
        );
    } else {
        // Each is an address of the cache: what is not freed for good comes again.
        ensure!(
            outstanding <= all,
            "{outstanding} of {all} objects: {event}"
        );
        let spots = at(&event, "blind_spots").as_array().map_or(0, Vec::len);
        ensure!(spots > 0, "no blind spots: {event}");
    }
    Ok(())
}

fn leak(context: &mut Context) -> Result<()> {
    let mut hog = held(context, &["tap", &FRAMES.to_string()])?;
    let all = follow(context, &["skb", "--track", "--sample", "1"])?;
    let sampled = follow(context, &["skb", "--track", "--sample", "1/64"])?;
    hog.go()?;
    hog.wait_ready(context.deadline)?;
    // Old enough to be told of.
    std::thread::sleep(SETTLE);
    let all = all.stop(context.deadline)?;
    let sampled = sampled.stop(context.deadline)?;
    hog.expect_alive()?;

    let of = Of::process(&all, hog.pid())?;
    ensure!(
        of.objects.abs_diff(FRAMES) <= FRAMES / 50,
        "{} of {FRAMES} frames: {all}",
        of.objects
    );
    of.came_by(&["__alloc_skb", "sock_alloc_send_pskb", "packet_sendmsg"])?;
    is_in_scratch(context, &all, hog.pid())?;
    holds_them_now(&all, hog.pid())?;

    equal(&sampled, "sample", SAMPLE)?;
    let of = Of::process(&sampled, hog.pid())?;
    let error = 1.0 / approx(of.objects / SAMPLE).max(1.0).sqrt();
    // Five standard errors: never, if they are what they are said to be.
    ensure!(
        approx(of.objects.abs_diff(FRAMES)) <= 5.0 * error * approx(of.objects),
        "{} of {FRAMES} frames by a sample: {sampled}",
        of.objects
    );
    of.came_by(&["__alloc_skb", "sock_alloc_send_pskb", "packet_sendmsg"])?;
    is_in_scratch(context, &sampled, hog.pid())?;
    holds_them_now(&sampled, hog.pid())
}

fn overflow(context: &mut Context) -> Result<()> {
    let mut hog = held(context, &["tap", &MANY_FRAMES.to_string()])?;
    let following = follow(context, &["skb", "--track", "--sample", "1/2"])?;
    hog.go()?;
    hog.wait_ready(context.deadline)?;
    std::thread::sleep(SETTLE);
    let event = following.stop(context.deadline)?;
    hog.expect_alive()?;

    equal(&event, "sample_asked", 2)?;
    let sample = count(&event, "sample")?;
    let followed = count(&event, "followed_objects")?;
    // Twice as sparse would have been too sparse.
    ensure!(
        sample.is_power_of_two() && (ROOM / 8..=ROOM / 2).contains(&followed),
        "{followed} followed, one of {sample}: {event}"
    );
    let spots = at(&event, "blind_spots").as_array().into_iter().flatten();
    let mut spots = spots.filter_map(Value::as_str);
    let told = format!("one of {sample} is followed and not one of 2");
    ensure!(
        spots.any(|spot| spot.contains(&told)),
        "not told that {told}: {event}"
    );

    // What found no room is not lost without a word, and is not what the result rests on.
    let lost = count(&event, "accuracy.no_room")? * sample;
    let of = Of::process(&event, hog.pid())?;
    let is_near = |told: u64, truth: u64, noise: u64| {
        let error = 5.0 * approx(told) / approx(followed).sqrt();
        approx(told.abs_diff(truth)) <= error + approx(lost + noise)
    };
    ensure!(
        is_near(of.objects, MANY_FRAMES, 0),
        "{} of {MANY_FRAMES} frames: {event}",
        of.objects
    );
    of.came_by(&["__alloc_skb", "sock_alloc_send_pskb", "packet_sendmsg"])?;
    is_in_scratch(context, &event, hog.pid())?;
    let grown = count(&event, "slab_growth_objects")?;
    let objects = count(&event, "objects")?;
    ensure!(
        is_near(objects, grown, noise("skbuff_head_cache")?),
        "{objects} outstanding, {grown} by slabinfo: {event}"
    );
    Ok(())
}

/// Fails unless what a process allocated is in the queue of its own capture now.
fn holds_them_now(event: &Value, pid: i32) -> Result<()> {
    let stacks = at(event, "stacks").as_array().context("stacks")?;
    let of_it = stacks.iter().filter(|stack| at(stack, "pid") == pid);
    let (mut allocated, mut held) = (0, 0);
    for stack in of_it {
        allocated += count(stack, "objects")?;
        let holders = at(stack, "held_by").as_array().context("held_by")?;
        for holder in holders {
            if at(holder, "process.pid") == pid && at(holder, "socket.family") == "packet" {
                held += count(holder, "skbs")?;
            }
        }
    }
    ensure!(
        allocated > 0 && held * 20 >= allocated * 19,
        "{held} of {allocated} are in its queue: {event}"
    );
    Ok(())
}

fn holder(context: &mut Context) -> Result<()> {
    const CACHE: &str = "sock_inode_cache";
    let mut hog = held(context, &["sockets", &PAIRS.to_string()])?;
    let follow = || follow(context, &["slab", "--track", CACHE, "--sample", "1"]);
    let (during, afterwards) = (follow()?, follow()?);
    hog.go()?;
    hog.wait_ready(context.deadline)?;
    std::thread::sleep(SETTLE);
    let during = during.stop(context.deadline)?;
    hog.expect_alive()?;
    let pid = hog.pid();
    drop(hog);
    std::thread::sleep(SETTLE);
    let afterwards = afterwards.stop(context.deadline)?;

    equal(&during, "kind", "slab_outstanding")?;
    equal(&during, "what", CACHE)?;
    let of = Of::process(&during, pid)?;
    ensure!(
        of.objects == 2 * PAIRS,
        "{} of {} sockets: {during}",
        of.objects,
        2 * PAIRS
    );
    // An inode of a socket is bigger than any other.
    ensure!(of.bytes >= of.objects * 512, "{} bytes: {during}", of.bytes);
    of.came_by(&["sock_alloc_inode"])?;
    is_in_scratch(context, &during, pid)?;
    let left = Of::process(&afterwards, pid)?.objects;
    let unseen = unseen(&afterwards)?;
    ensure!(
        left <= unseen,
        "{left} sockets of a process that is gone, {unseen} of them unseen: {afterwards}"
    );
    Ok(())
}
