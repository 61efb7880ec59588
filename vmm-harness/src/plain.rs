//! Text that a guest, an image or a file has written, for a terminal.

/// The text without what a terminal would obey: each control character but a line's end is replaced.
pub(crate) fn plain(text: &str) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(
            plain("a\n\u{1b}[2Jb\u{7}\u{9b}c\r"),
            "a\n\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}"
        );
    }
}
