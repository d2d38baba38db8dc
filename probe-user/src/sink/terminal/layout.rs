//! Lines of bounded width.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of a line.
pub(super) const WIDTH: usize = 100;

/// Columns before the text of an item.
const INDENT: usize = 11;

#[derive(Clone, Copy)]
pub(super) enum Colour {
    Plain,
    Dim,
    Strong,
    Warn,
    Alarm,
}

impl Colour {
    /// SGR parameters (ECMA-48).
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "2",
            Self::Strong => "1",
            Self::Warn => "1;33",
            Self::Alarm => "1;31",
        }
    }
}

/// The lines of one event. Text must be escaped already.
pub(super) struct Page {
    text: String,
    colour: bool,
}

impl Page {
    pub(super) const fn new(colour: bool) -> Self {
        Self {
            text: String::new(),
            colour,
        }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn line(&mut self, colour: Colour, text: &str) {
        self.paint(colour, text);
        self.text.push('\n');
    }

    /// A line, or two if it is long.
    pub(super) fn note(&mut self, colour: Colour, text: &str) {
        for (index, part) in fold(text, WIDTH - 2, 2).iter().enumerate() {
            if index > 0 {
                self.text.push_str("  ");
            }
            self.line(colour, part);
        }
    }

    /// Full-width text, indented, on at most `lines` lines.
    pub(super) fn paragraph(&mut self, colour: Colour, text: &str, lines: usize) {
        for part in fold(text, WIDTH - 2, lines) {
            self.text.push_str("  ");
            self.line(colour, &part);
        }
    }

    /// Text under a title, on at most `lines` lines.
    pub(super) fn item(&mut self, title: &str, text: &str, lines: usize) {
        for (index, part) in fold(text, WIDTH - INDENT, lines).iter().enumerate() {
            self.title(if index == 0 { title } else { "" });
            self.line(Colour::Plain, part);
        }
    }

    /// A command that can be copied as it stands: long ones go on after a backslash, and one that
    /// cannot be broken is not shown rather than cut.
    pub(super) fn command(&mut self, title: &str, command: &str) {
        self.title(title);
        let Some(parts) = fold_command(command, WIDTH - INDENT - 4) else {
            return self.line(Colour::Dim, "(too long for this view: see `-o json`)");
        };
        for (index, part) in parts.iter().enumerate() {
            if index == 0 {
                self.text.push_str("$ ");
            } else {
                self.text.push_str(&" ".repeat(INDENT + 4));
            }
            let more = if index + 1 < parts.len() { " \\" } else { "" };
            self.line(Colour::Plain, &format!("{part}{more}"));
        }
    }

    fn title(&mut self, title: &str) {
        self.text.push_str("  ");
        self.paint(Colour::Dim, title);
        self.text
            .push_str(&" ".repeat((INDENT - 2).saturating_sub(title.len())));
    }

    fn paint(&mut self, colour: Colour, text: &str) {
        let code = colour.code();
        if !self.colour || code.is_empty() || text.is_empty() {
            self.text.push_str(text);
        } else {
            self.text.push_str("\x1b[");
            self.text.push_str(code);
            self.text.push('m');
            self.text.push_str(text);
            self.text.push_str("\x1b[0m");
        }
    }
}

/// Columns a terminal needs.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// At most `columns` wide; "…" stands for what was cut.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let (head, _) = text.split_at(fitting(text, columns - 1));
    format!("{head}…")
}

/// Bytes of the longest start of `text` that is at most `columns` wide.
fn fitting(text: &str, columns: usize) -> usize {
    let mut used = 0;
    for (index, c) in text.char_indices() {
        used += c.width().unwrap_or(0);
        if used > columns {
            return index;
        }
    }
    text.len()
}

/// Breaks at spaces, or inside a word that is longer than a line; what does not fit on `lines`
/// lines is cut.
fn fold(text: &str, columns: usize, lines: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while parts.len() + 1 < lines && rest.width() > columns {
        let end = fitting(rest, columns);
        // A space right behind the last column is a place to break too.
        let end = if rest[end..].starts_with(' ') {
            end
        } else {
            rest[..end]
                .rfind(' ')
                .filter(|&space| space > 0)
                .unwrap_or(end)
        };
        let (head, tail) = rest.split_at(end);
        parts.push(head.trim_end().to_owned());
        rest = tail.trim_start();
    }
    parts.push(cut(rest, columns));
    parts
}

/// Breaks a command at spaces outside quotes. `None` if a piece is longer than a line.
fn fold_command(command: &str, columns: usize) -> Option<Vec<String>> {
    let mut parts: Vec<String> = Vec::new();
    for word in words(command) {
        match parts.last_mut() {
            Some(last) if last.width() + 1 + word.width() <= columns => {
                last.push(' ');
                last.push_str(word);
            }
            _ if word.width() <= columns => parts.push(word.to_owned()),
            _ => return None,
        }
    }
    Some(parts)
}

/// Shell words with their quotes.
fn words(command: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quote) = (0, None);
    for (index, c) in command.char_indices() {
        match (c, quote) {
            (' ', None) => {
                words.push(&command[start..index]);
                start = index + 1;
            }
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            _ => {}
        }
    }
    words.push(&command[start..]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folding() {
        assert_eq!(fold("aa bb cc", 5, 3), ["aa bb", "cc"]);
        assert_eq!(fold("aaaaaaa bb", 5, 3), ["aaaaa", "aa bb"]);
        assert_eq!(fold("aa bb cc dd ee", 5, 2), ["aa bb", "cc d…"]);
        assert_eq!(fold("日本語日本語", 5, 9), ["日本", "語日", "本語"]);
        assert_eq!(fold("", 5, 3), [""]);
    }

    #[test]
    fn commands_break_outside_quotes_only() {
        let parts = fold_command("grep -n 'a b c d' file", 10);
        assert_eq!(
            parts,
            Some(vec!["grep -n".into(), "'a b c d'".into(), "file".into()])
        );
        assert_eq!(fold_command("cat /a/very/long/path", 10), None);
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_told(text in "\\PC{0,300}", columns in 2_usize..50, lines in 1_usize..5) {
            let parts = fold(&text, columns, lines);
            prop_assert!(parts.len() <= lines);
            for part in parts {
                prop_assert!(part.width() <= columns, "{part:?}");
            }
        }
    }
}
