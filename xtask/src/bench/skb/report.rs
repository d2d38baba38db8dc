//! The section on socket buffers.

use std::fmt::{Result, Write as _};

use super::{
    Load, Measured,
    audit::{Audit, PACKETS, PAYLOAD},
    looks::{HELD_PACKETS, TIMES},
    targets,
    tracers::{Kind, SCRIPT},
    traffic::WINDOW,
};
use crate::bench::{
    slowdown::{self, Slowdown},
    stats::Samples,
    table::{self, Figure, count, mib, number, shown},
};

/// The whole section.
pub(super) fn markdown(measured: &Measured) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(&mut text, measured);
    text
}

fn write(text: &mut String, measured: &Measured) -> Result {
    writeln!(
        text,
        "`cargo xtask bench skb --cycles {}`\n",
        measured.cycles
    )?;
    targets::write(text, measured)?;
    throughput(text, measured)?;
    audits(text, measured)?;
    passes(text, measured)?;
    census(text, measured)?;
    writeln!(text, "\n### The machine, for socket buffers\n")?;
    let machine = measured.machine.iter();
    let machine = machine.map(|(name, value)| (*name, value.as_str()));
    let hooks = measured
        .audits
        .values()
        .find_map(|it| it.claim.hooks.as_deref());
    let hooks = hooks.map(|hooks| ("hooks", hooks));
    let versions = measured.versions.iter().map(|tool| ("tool", tool.as_str()));
    table::facts(text, machine.chain(hooks).chain(versions))?;
    explain(text, measured.cycles)
}

/// Part of the throughput that is lost, %.
pub(super) fn loss(slowdown: &Slowdown) -> Samples {
    slowdown
        .wall
        .map(|percent| percent / (100.0 + percent) * 100.0)
}

pub(super) fn median(samples: &Samples) -> Option<Figure> {
    Some(Figure {
        value: samples.median()?,
        error: samples.median_error()?,
    })
}

fn throughput(text: &mut String, measured: &Measured) -> Result {
    writeln!(text, "\n### Throughput over loopback\n")?;
    let mut header = "| | with nothing | | nothing again: lost, % |".to_owned();
    for kind in measured.audits.keys() {
        write!(header, " {kind}: lost, % |")?;
    }
    writeln!(text, "{header}")?;
    writeln!(
        text,
        "|---|--:|---|{}",
        "--:|".repeat(1 + measured.audits.len())
    )?;
    for (load, nothing, slowdowns) in &measured.throughput {
        let a_second = nothing.wall_ms.map(|ms| count(load.amount) / ms * 1e3);
        let a_second = number(a_second.median());
        let again = shown(median(&loss(&nothing.again)));
        write!(
            text,
            "| {} | {a_second} | {} | {again} |",
            load.name, load.unit
        )?;
        for kind in measured.audits.keys() {
            let lost = slowdowns.get(kind).and_then(|it| median(&loss(it)));
            write!(text, " {} |", shown(lost))?;
        }
        writeln!(text)?;
    }
    for (kind, why) in &measured.missing {
        writeln!(text, "\n{kind} could not be measured here: {why}")?;
    }
    Ok(())
}

/// What is taken for outstanding although all is freed, % of what was allocated.
pub(super) fn false_percent(kind: Kind, audit: &Audit) -> f64 {
    let allocated = PACKETS * kind.allocations_per_packet();
    count(audit.claim.outstanding) / count(allocated) * 100.0
}

fn audits(text: &mut String, measured: &Measured) -> Result {
    writeln!(
        text,
        "\n### After {PACKETS} packets, all of them freed\n\n\
         | | taken for outstanding | % of the allocations | frees it knows it missed, % | slabinfo \
         rose by | BPF ns per packet | BPF maps, MiB | rss, MiB |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for (kind, audit) in &measured.audits {
        let ns: u64 = audit.programs.iter().map(|ran| ran.runs.ns).sum();
        writeln!(
            text,
            "| {kind} | {} | {} | {} | {} | {} | {} | {} |",
            audit.claim.outstanding,
            number(Some(false_percent(*kind, audit))),
            number(audit.claim.missed_ratio.map(|ratio| ratio * 100.0)),
            audit.slab_growth,
            number(Some(count(ns) / count(PACKETS))),
            number(Some(mib(audit.map_bytes >> 10))),
            number(Some(mib(audit.rss_kib))),
        )?;
    }
    for (kind, audit) in &measured.audits {
        table::programs(text, kind, &audit.programs, "packet", PACKETS)?;
    }
    Ok(())
}

fn passes(text: &mut String, measured: &Measured) -> Result {
    writeln!(
        text,
        "\n### One look at all sockets\n\n\
         `oomprobe skb --census off --duration 0s`\n\n\
         | sockets | descriptors looked at | look, ms | whole program, ms |\n|--:|--:|--:|--:|"
    )?;
    for pass in &measured.passes {
        writeln!(
            text,
            "| {} | {} | {} | {} |",
            pass.sockets,
            pass.descriptors,
            shown(median(&pass.look_ms)),
            shown(median(&pass.whole_ms)),
        )?;
    }
    Ok(())
}

fn census(text: &mut String, measured: &Measured) -> Result {
    writeln!(
        text,
        "\n### The census of {HELD_PACKETS} packets in one socket\n\n\
         | | census, ms | whole program, ms | memory looked at, % | stated error, % | holder off by, \
         % | at worst | all off slabinfo by, % |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for census in &measured.census {
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} |",
            census.how,
            shown(median(&census.took_ms)),
            shown(median(&census.whole_ms)),
            number(census.pages_percent.median()),
            number(census.stated_percent.median()),
            number(census.holder_off_percent.median()),
            number(census.holder_off_percent.max()),
            number(census.total_off_percent.median()),
        )?;
    }
    Ok(())
}

fn explain(text: &mut String, cycles: u32) -> Result {
    let udp = Load::EACH[0];
    let tcp = Load::EACH[3];
    write!(
        text,
        "
### What is measured of socket buffers

- **Throughput**: {cycles} cycles of nothing, one tracer after the other, nothing; the next cycle has
  the tracers the other way round. Each part is the median of {rounds} rounds of {packets} packets or
  {stream} MiB, after one to warm up; a tracer is compared with the mean of both parts with nothing of its
  cycle. \"Nothing again\" is the second of these compared with the first: what noise alone makes. One
  thread sends, on the last CPU of the machine, another receives on the first; no packet is lost, as
  who sends waits while {window} are on their way. Nothing is worked on but packets: a machine that does
  something with them loses less.
- **±** is two standard errors of the median. What it leaves open is \"in the noise\": neither met nor
  missed.
- oomprobe is `oomprobe skb --track`. memleak is `memleak-libbpf` of Debian, for the kernel, as it is by
  default: it follows all allocations of the kernel, so of a packet two, and its pages. Both tell at the
  end only. bpftrace runs this, with room for as many objects as oomprobe has without sampling:

```
{SCRIPT}
```

- **After the packets**, each tracer alone: UDP, {PAYLOAD} B; the sockets are closed, so that none of
  the packets is left, and what is taken for outstanding two seconds later is wrong. slabinfo counts
  objects that CPUs keep at hand as in use, so that its rise is noise of some hundred. Which frees can be
  seen is a matter of the hooks that a kernel has: see \"hooks\" below. BPF run time is the kernel's account
  (`kernel.bpf_stats_enabled`); its own clock reads are part of it. Of memleak, allocations count whose
  stack has a function that makes socket buffers.
- **A look** is at unix sockets of as many processes as it takes, one pair in ten with a packet, {TIMES}
  times; what else is on the machine is looked at too. **The census**, of one unix stream that is not read, is taken {TIMES} times, each sample
  another one: \"off by\" is the median of how far it was off either way, from the number that was sent, and
  from what slabinfo counts as in use.
",
        rounds = slowdown::ROUNDS,
        packets = udp.amount,
        window = WINDOW,
        stream = tcp.amount,
    )
}
