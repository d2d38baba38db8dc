//! The `oomprobe` command.
use oomprobe::kernel::{
    btf::Btf,
    layout,
    loader::{Probe, survey},
};
use probe_common::layout::ProbeConfig;
fn main() -> anyhow::Result<()> {
    let t = std::time::Instant::now();
    let report = layout::resolve(&Btf::running()?);
    let l = report.layout()?;
    println!("layout {:?}", t.elapsed());
    for a in report.absent() {
        println!("absent {a:?}");
    }
    let c = ProbeConfig {
        per_cpu_offset: 0,
        cpus: 2,
        pad: 0,
    };
    for (s, r) in survey(&l, &c)? {
        for (h, r) in r {
            println!("{s:?} {h} {r:?}");
        }
    }
    println!("surveyed {:?}", t.elapsed());
    if std::env::args().nth(1).is_some() {
        return Ok(());
    }
    let mut probe = Probe::attach(&l, &c)?;
    println!("attached {:?}", t.elapsed());
    for s in &probe.served {
        println!("{:?} {:?} {:?}", s.signal, s.hook, s.refused);
    }
    let c = probe.candidates()?;
    println!(
        "{} candidates {:?}",
        c.len(),
        c.iter()
            .map(|c| (
                String::from_utf8_lossy(&c.comm).into_owned(),
                c.pid,
                c.rss_anon_pages
            ))
            .collect::<Vec<_>>()
    );
    use bytes::Bytes;
    loop {
        while let Some(i) = probe.critical.next() {
            let b = Bytes::copy_from_slice(&i);
            match oomprobe::ring::decode::Record::decode(&b) {
                Ok(r) => println!("{} {r:x?}", b.len()),
                Err(e) => println!("{e}"),
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
