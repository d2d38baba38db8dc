//! Text that is safe to show: names on a node are chosen by whoever runs there.

use std::borrow::Cow;

/// Whether a terminal acts on the character, or a reader cannot see it: control characters (C0,
/// DEL, C1), line separators, bidirectional controls, invisible and tag characters.
pub const fn is_hostile(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        | '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Replaces every hostile character by its escape: `\n`, `\x1b`, `\u{202e}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' | '\t' | '\r' => out.extend(c.escape_default()),
            c if c.is_ascii() && is_hostile(c) => {
                out.push_str("\\x");
                out.extend([hex(u32::from(c) >> 4), hex(u32::from(c) & 0xf)]);
            }
            c if is_hostile(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn hex(digit: u32) -> char {
    char::from_digit(digit, 16).unwrap_or('?')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::text;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        assert_eq!(escape("\x1b[2J\x07\n"), r"\x1b[2J\x07\n");
        assert_eq!(escape("a\u{9b}31m"), r"a\u{9b}31m");
        assert_eq!(escape("a\u{202e}b"), r"a\u{202e}b");
        assert_eq!(escape("naïve 日本 \\x2d"), "naïve 日本 \\x2d");
        assert_eq!(escape(&text(b"a\xff\x1b")), r"a\xff\x1b");
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_give_a_hostile_character(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let text = text(&bytes);
            prop_assert!(!escape(&text).contains(is_hostile));
        }

        #[test]
        fn no_text_at_all_gives_a_hostile_character(text in any::<String>()) {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(is_hostile));
            prop_assert_eq!(escape(&escaped), escaped.as_ref(), "escaping twice changes nothing");
        }
    }
}
