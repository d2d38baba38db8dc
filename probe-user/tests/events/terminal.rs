//! What a person sees.

use oomprobe::event::{Event, OomKill, is_hostile};
use oomprobe::sink::terminal::render;
use unicode_width::UnicodeWidthStr;

use crate::committed::assert_committed;
use crate::samples;

fn golden(name: &str, kill: OomKill) {
    let path = format!("probe-user/tests/events/golden/{name}.txt");
    assert_committed(&path, &render(&samples::explained(kill), false));
}

#[test]
fn container_kill() {
    golden("container", samples::container_kill());
}

#[test]
fn node_kill() {
    golden("node", samples::node_kill());
}

#[test]
fn group_kill() {
    golden("group", samples::group_kill());
}

#[test]
fn tmpfs_kill() {
    golden("tmpfs", samples::tmpfs_kill());
}

#[test]
fn leak_kill() {
    golden("leak", samples::leak_kill());
}

#[test]
fn hostile_names() {
    golden("hostile", samples::hostile_kill());
}

#[test]
fn deaths() {
    let pages: Vec<String> = samples::deaths()
        .iter()
        .map(|(name, event)| format!("# {name}\n{}", render(event, false)))
        .collect();
    assert_committed(
        "probe-user/tests/events/golden/deaths.txt",
        &pages.join("\n"),
    );
}

#[test]
fn slab() {
    for (name, event) in [
        ("slab_ill", samples::slab::ill()),
        ("slab_hostile", samples::slab::hostile()),
        ("skb_outstanding", samples::outstanding::skb()),
        ("slab_outstanding", samples::outstanding::slab()),
    ] {
        let path = format!("probe-user/tests/events/golden/{name}.txt");
        assert_committed(&path, &render(&event, false));
    }
}

#[test]
fn triage() {
    for (name, event) in [
        ("triage_ill", samples::triage::ill()),
        ("triage_healthy", samples::triage::healthy()),
        ("triage_hostile", samples::triage::hostile()),
        ("skb_held", samples::skb::held()),
        ("skb_nothing", samples::skb::nothing()),
        ("skb_hostile", samples::skb::hostile()),
    ] {
        let path = format!("probe-user/tests/events/golden/{name}.txt");
        assert_committed(&path, &render(&event, false));
    }
}

#[test]
fn other_kinds() {
    let lines: String = samples::others()
        .iter()
        .map(|event| render(event, false))
        .collect();
    assert_committed("probe-user/tests/events/golden/others.txt", &lines);
}

#[test]
fn pressure() {
    let lines: String = samples::pressure()
        .iter()
        .map(|event| render(event, false))
        .collect();
    assert_committed("probe-user/tests/events/golden/pressure.txt", &lines);
}

#[test]
fn every_event_fits_the_screen() {
    for event in samples::all() {
        let text = render(&event, false);
        assert!(text.ends_with('\n'));
        let lines: Vec<_> = text.lines().collect();
        let most = match event.body.kind() {
            "oom_kill" | "pressure" => 25,
            "process_death" => 13,
            "leak_suspect" => 3,
            "triage" => 70,
            "skb_holders" => 45,
            "slab_usage" | "skb_outstanding" | "slab_outstanding" => 50,
            _ => 2,
        };
        assert!(lines.len() <= most, "{} lines:\n{text}", lines.len());
        for line in lines {
            assert!(line.width() <= 100, "{} columns: {line}", line.width());
        }
    }
}

#[test]
fn nothing_hostile_reaches_the_terminal() {
    for event in samples::all() {
        let text = render(&event, false);
        let bad: Vec<_> = text
            .chars()
            .filter(|&c| c != '\n' && is_hostile(c))
            .collect();
        assert!(bad.is_empty(), "{bad:?} in\n{text}");
    }
}

#[test]
fn colour_adds_escape_codes_and_nothing_else() {
    let plain = |event: &Event| {
        let mut text = String::new();
        for (index, part) in render(event, true).split("\x1b[").enumerate() {
            text.push_str(if index == 0 {
                part
            } else {
                part.split_once('m').unwrap().1
            });
        }
        text
    };
    for event in samples::all() {
        assert_ne!(render(&event, true), render(&event, false));
        assert_eq!(plain(&event), render(&event, false));
    }
}
