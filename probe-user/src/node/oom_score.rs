//! The points by which the OOM killer compares processes (`oom_badness()`, mm/oom_kill.c, 5.9 and
//! later).

use probe_common::wire::{Task, has};

/// `oom_score_adj` that exempts a process (`OOM_SCORE_ADJ_MIN`).
const EXEMPT: i32 = -1000;

/// Points of `task`, in pages, in a domain of `total_pages` (`oc->totalpages`: the limit of
/// the memcg with its swap, or RAM and swap of the node); the highest is killed. They may be
/// negative.
///
/// `None` if the kernel never chooses it: a kernel thread, init, a process without memory, or one
/// that `oom_score_adj` exempts; also if the record lacks the numbers. Processes the OOM reaper is
/// done with, and those in `vfork`, are exempt too, but a record does not tell.
pub fn points(task: &Task, total_pages: u64, page_size: u64) -> Option<i64> {
    let known = has::TASK | has::SIGNAL | has::MM;
    if task.has & known != known || task.pid == 1 || task.oom_score_adj == EXEMPT {
        return None;
    }
    let resident = task
        .rss_file_pages
        .saturating_add(task.rss_anon_pages)
        .saturating_add(task.rss_shmem_pages)
        .saturating_add(task.swap_pages);
    let page_tables = i64::try_from(task.pgtables_bytes.checked_div(page_size)?).ok()?;
    // The kernel divides first.
    let share = i64::try_from(total_pages / 1000).ok()?;
    let adjustment = i64::from(task.oom_score_adj).checked_mul(share)?;
    Some(
        resident
            .saturating_add(page_tables)
            .saturating_add(adjustment),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;

    fn candidate(pid: u32, rss_pages: i64, oom_score_adj: i32) -> Task {
        let mut candidate = Task::zeroed();
        candidate.has = has::TASK | has::SIGNAL | has::MM;
        candidate.pid = pid;
        candidate.rss_anon_pages = rss_pages;
        candidate.oom_score_adj = oom_score_adj;
        candidate
    }

    #[test]
    fn adds_memory_swap_and_page_tables() {
        let mut hog = candidate(7, 5088, 0);
        hog.rss_file_pages = 215;
        hog.rss_shmem_pages = 3;
        hog.swap_pages = 10;
        hog.pgtables_bytes = 81920;
        let points = points(&hog, 5120, 4096);
        assert_eq!(points, Some(5088 + 215 + 3 + 10 + 20));
    }

    #[test]
    fn adjustment_is_in_thousandths_of_the_domain() {
        let burstable = candidate(7, 100, 999);
        assert_eq!(points(&burstable, 1_048_999, 4096), Some(100 + 999 * 1048));
        let protected = candidate(7, 100, -997);
        assert_eq!(points(&protected, 1_048_999, 4096), Some(100 - 997 * 1048));
        let small_domain = candidate(7, 100, 1000);
        assert_eq!(points(&small_domain, 999, 4096), Some(100));
    }

    #[test]
    fn some_are_never_chosen() {
        assert_eq!(points(&candidate(7, 100, -1000), 5120, 4096), None);
        assert_eq!(points(&candidate(1, 100, 0), 5120, 4096), None);
        let mut unread = candidate(7, 100, 0);
        unread.has &= !has::MM;
        assert_eq!(points(&unread, 5120, 4096), None);
    }
}
