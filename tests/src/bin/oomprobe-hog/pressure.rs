//! Workloads that press a limit, or the node, and go on until they are killed.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::memory::{grow, map, shmem};
use super::processes::spawn;
use super::{MIB, PAGE};

/// What one read(2) of a [`Reader`] asks for, unless it reads single pages.
const PIECE: usize = 64 << 10;

/// Reads between two looks at the clock.
const BATCH: usize = 16;

/// Reads a file or a device again and again. `ready` is said after the first pass.
#[derive(clap::Args)]
pub(super) struct Reader {
    /// Whatever it holds: holes of a file and unwritten blocks of a device do as well
    path: PathBuf,
    /// How much of it
    mib: usize,
    /// After the first pass, touch single pages in random order for ever
    #[arg(long)]
    random: bool,
    /// Have the kernel forget it after each pass, as if each were of another file
    #[arg(long)]
    forget: bool,
    /// After each read, compute for so many times as long as the read took
    #[arg(long, default_value_t = 0)]
    busy: u32,
    /// So many processes, each of which reads a part of this size
    #[arg(long, default_value_t = 1)]
    readers: usize,
    /// Hold so much anonymous memory meanwhile
    #[arg(long, default_value_t = 0)]
    anon: usize,
    /// Hold so much shared memory meanwhile
    #[arg(long, default_value_t = 0)]
    shmem: usize,
    /// End after so many passes
    #[arg(long)]
    passes: Option<u32>,
}

impl Reader {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let file = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        ensure!(self.mib > 0, "nothing to read");
        grow(self.anon, None);
        if self.shmem > 0 {
            shmem(self.shmem)?;
        }
        for part in 1..self.readers {
            spawn(|| self.read(&file, part))?;
        }
        self.read(&file, 0)?;
        Ok(ExitCode::SUCCESS)
    }

    fn read(&self, file: &File, part: usize) -> Result<()> {
        let bytes = self.mib * MIB;
        let begin = part * bytes;
        let advise = |advice| {
            let range = |at: usize| libc::off_t::try_from(at).context("size of the file");
            posix_fadvise(file, range(begin)?, range(bytes)?, advice).context("posix_fadvise")
        };
        let mut buffer = vec![0; PIECE];
        let mut pass = 0;
        while self.passes != Some(pass) {
            for batch in 0..(bytes / PIECE).div_ceil(BATCH) {
                let start = Instant::now();
                for piece in batch * BATCH..(bytes / PIECE).min((batch + 1) * BATCH) {
                    file.read_exact_at(&mut buffer, (begin + piece * PIECE) as u64)
                        .with_context(|| format!("read {}", self.path.display()))?;
                }
                compute(start.elapsed() * self.busy);
            }
            pass += 1;
            if pass == 1 && part == 0 {
                println!("ready");
            }
            if self.forget {
                advise(PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            }
            if self.random {
                return self.look_up(file, begin, bytes);
            }
        }
        Ok(())
    }

    /// Touches pages of the mapped file in random order. Pages that are used by page tables count
    /// as a working set sooner than those that read(2) uses.
    fn look_up(&self, file: &File, begin: usize, bytes: usize) -> Result<()> {
        let length = NonZeroUsize::new(bytes).context("nothing to read")?;
        let offset = libc::off_t::try_from(begin).context("size of the file")?;
        // SAFETY: a new mapping, never unmapped; nobody writes to the file.
        let pages = unsafe {
            let start = mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                offset,
            )
            .with_context(|| format!("map {}", self.path.display()))?;
            std::slice::from_raw_parts(start.cast::<u8>().as_ptr(), bytes)
        };
        let mut random = Random::new();
        loop {
            std::hint::black_box(pages[random.below(bytes / PAGE) * PAGE]);
        }
    }
}

/// Uses the processor.
fn compute(time: Duration) {
    let start = Instant::now();
    let mut random = Random::new();
    while start.elapsed() < time {
        for _ in 0..1000 {
            std::hint::black_box(random.below(MIB));
        }
    }
}

/// Fills memory, then writes to its pages in random order.
pub(super) fn touch(mib: usize) -> Result<()> {
    let memory = map(mib, MapFlags::MAP_PRIVATE)?;
    let mut random = Random::new();
    for page in memory.chunks_mut(PAGE) {
        // Half of each page does not compress, as with real data: a page of one value would take
        // no room in a compressed swap.
        for word in page[..PAGE / 2].chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_ne_bytes());
        }
    }
    println!("ready");
    let pages = memory.len() / PAGE;
    loop {
        let page = random.below(pages);
        memory[page * PAGE] ^= 1;
    }
}

/// Grows to `mib`, gives all of it back, and begins anew.
pub(super) fn sawtooth(mib: usize, mib_per_s: u32) -> Result<()> {
    ensure!(mib_per_s > 0, "it must grow");
    println!("ready");
    loop {
        let start = Instant::now();
        let mut held: Vec<Vec<u8>> = Vec::new();
        while held.len() < mib {
            held.push(vec![1; MIB]);
            let taken = u32::try_from(held.len()).context("size of a tooth")?;
            let due = Duration::from_secs(1) * taken / mib_per_s;
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
}

/// Marsaglia's xorshift: the same sequence in every run.
struct Random(u64);

impl Random {
    const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }
}
