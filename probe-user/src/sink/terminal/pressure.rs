//! Lines for events of memory pressure.

use super::layout::{Colour, Page};
use crate::event::{Event, escape};

pub(super) fn event(page: &mut Page, time: &str, event: &Event) {
    page.note(
        Colour::Dim,
        &format!("{time} {}", escape(event.body.kind())),
    );
}
