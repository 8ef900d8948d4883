//! A tree in lines that fit a terminal.

use super::output;

/// A line with what belongs to it.
#[derive(Debug)]
pub(super) struct Tree {
    text: String,
    /// Where the text goes on in further lines.
    hang: usize,
    children: Vec<Tree>,
}

/// How wide a label is.
const LABEL: usize = 13;

impl Tree {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), hang: 2, children: Vec::new() }
    }

    /// Text behind a label, below others of the same kind.
    pub(super) fn labelled(label: &str, text: &str) -> Self {
        Self { text: format!("{label:<LABEL$} {text}"), hang: LABEL + 1, children: Vec::new() }
    }

    /// Something that is wrong.
    pub(super) fn mark(what: &str) -> Self {
        Self::new(format!("! {what}"))
    }

    pub(super) fn push(&mut self, child: Self) {
        self.children.push(child);
    }

    pub(super) fn with(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    /// The lines, without an end of line behind the last.
    pub(super) fn draw(&self) -> String {
        let mut lines = Vec::new();
        self.draw_into(&mut lines, "", "");
        lines.join("\n")
    }

    fn draw_into(&self, lines: &mut Vec<String>, first: &str, rest: &str) {
        let below = if self.children.is_empty() { " " } else { "│" };
        let hanging = format!("{rest}{below}{}", " ".repeat(self.hang.saturating_sub(1)));
        // Blanks of the label stay: only the text behind it is broken.
        let (label, text) = self.text.split_at(match self.hang {
            2 => 0,
            hang => self.text.char_indices().nth(hang).map_or(0, |(at, _)| at),
        });
        lines.push(output::wrapped(&format!("{first}{label}"), &hanging, text));
        for (index, child) in self.children.iter().enumerate() {
            let (branch, stem) = if index + 1 == self.children.len() {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            child.draw_into(lines, &format!("{rest}{branch}"), &format!("{rest}{stem}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_drawn_with_its_branches_and_long_texts_hang_behind_their_label() {
        let long = "process 1 (postgres), ".repeat(5);
        let tree = Tree::new("volume v").with([
            Tree::labelled("map", "m").with([Tree::new("sda"), Tree::mark("sdb fails")]),
            Tree::labelled("held open by", &long),
            Tree::new("end"),
        ]);
        let expected = "\
volume v
├─ map           m
│  ├─ sda
│  └─ ! sdb fails
├─ held open by  process 1 (postgres), process 1 (postgres), process 1
│                (postgres), process 1 (postgres), process 1 (postgres),
└─ end";
        assert_eq!(tree.draw(), expected);
    }
}
