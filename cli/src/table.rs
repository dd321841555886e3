//! Tables and lists of fields for people: aligned, without lines, the state in colour. Colours are escape
//! codes here; the output stream strips them where there is no terminal.

use tabled::builder::Builder;
use tabled::settings::object::{Columns, Rows};
use tabled::settings::peaker::Priority;
use tabled::settings::{Alignment, Color, Padding, Style, Width};

/// What a cell's colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    Faint,
}

impl Tone {
    fn color(self) -> Option<Color> {
        match self {
            Self::Plain => None,
            Self::Good => Some(Color::FG_GREEN),
            Self::Warn => Some(Color::FG_YELLOW),
            Self::Bad => Some(Color::FG_RED),
            Self::Faint => Some(Color::FG_BRIGHT_BLACK),
        }
    }

    /// `text` in this tone.
    pub(crate) fn paint(self, text: &str) -> String {
        self.color()
            .map_or_else(|| text.to_owned(), |color| color.colorize(text))
    }
}

/// One cell.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    title: &'static str,
    right: bool,
    optional: bool,
}

impl Column {
    /// Text.
    pub(crate) const fn left(title: &'static str) -> Self {
        Self {
            title,
            right: false,
            optional: false,
        }
    }

    /// Numbers.
    pub(crate) const fn right(title: &'static str) -> Self {
        Self {
            title,
            right: true,
            optional: false,
        }
    }

    /// Text; the column is left out when no row has any.
    pub(crate) const fn optional(title: &'static str) -> Self {
        Self {
            title,
            right: false,
            optional: true,
        }
    }
}

/// Rows under a header.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, each line ended, wrapped to `width` where one is given.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let shown: Vec<usize> = (0..self.columns.len()).filter(|i| self.is_shown(*i)).collect();
        let columns: Vec<Column> = shown
            .iter()
            .filter_map(|i| self.columns.get(*i).copied())
            .collect();
        let mut builder = Builder::default();
        builder.push_record(columns.iter().map(|c| c.title));
        for row in &self.rows {
            builder.push_record(
                shown
                    .iter()
                    .map(|i| row.get(*i).map_or("", |cell| cell.text.as_str())),
            );
        }
        let mut table = builder.build();
        table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
        table.modify(Rows::first(), Color::BOLD);
        for (place, column) in columns.iter().enumerate() {
            if column.right {
                table.modify(Columns::one(place), Alignment::right());
            }
        }
        if columns.is_empty() {
            return String::new();
        }
        table.modify(Columns::one(columns.len() - 1), Padding::zero());
        for (line, row) in self.rows.iter().enumerate() {
            for (place, index) in shown.iter().enumerate() {
                if let Some(color) = row
                    .get(*index)
                    .filter(|c| !c.text.is_empty())
                    .and_then(|c| c.tone.color())
                {
                    table.modify((line + 1, place), color);
                }
            }
        }
        if let Some(width) = width {
            table.with(
                Width::wrap(width.max(40))
                    .keep_words(true)
                    .priority(Priority::max(true)),
            );
        }
        ended_lines(&table.to_string())
    }

    fn is_shown(&self, index: usize) -> bool {
        self.columns.get(index).is_some_and(|c| !c.optional)
            || self
                .rows
                .iter()
                .any(|row| row.get(index).is_some_and(|cell| !cell.text.is_empty()))
    }
}

/// `Name:  value` lines, the values aligned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    fields: Vec<(String, Cell)>,
}

impl Fields {
    /// A line.
    pub(crate) fn field(&mut self, name: &str, value: impl Into<Cell>) -> &mut Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// A line, unless there is nothing to say.
    pub(crate) fn optional(&mut self, name: &str, value: &str) -> &mut Self {
        if value.is_empty() {
            self
        } else {
            self.field(name, value)
        }
    }

    pub(crate) fn render(&self) -> String {
        let width = self
            .fields
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0)
            + 2;
        let mut text = String::new();
        for (name, value) in &self.fields {
            let label = format!("{name}:");
            let mut lines = value.text.lines();
            let first = value.tone.paint(lines.next().unwrap_or_default());
            text.extend([format!("{label:<width$} {first}\n")]);
            for line in lines {
                text.extend([format!("{:<width$} {}\n", "", value.tone.paint(line))]);
            }
        }
        text
    }
}

/// Every line without trailing blanks and with an end.
fn ended_lines(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn example() -> Table {
        let mut table = Table::new(&[
            Column::left("NAME"),
            Column::right("SIZE"),
            Column::left("STATE"),
            Column::optional("REASON"),
        ]);
        table.row([
            "db1".into(),
            "10.0 GiB".into(),
            Cell::new("healthy", Tone::Good),
            "".into(),
        ]);
        table.row([
            "a-longer-name".into(),
            "512 B".into(),
            Cell::new("failed", Tone::Bad),
            "".into(),
        ]);
        table
    }

    #[test]
    fn aligned_without_lines_or_trailing_blanks() {
        insta::assert_snapshot!(plain(&example().render(None)), @r"
        NAME               SIZE  STATE
        db1            10.0 GiB  healthy
        a-longer-name     512 B  failed
        ");
    }

    #[test]
    fn an_optional_column_shows_when_it_has_something() {
        let mut table = example();
        table.row(["c".into(), "1 B".into(), "x".into(), "because".into()]);
        assert!(plain(&table.render(None)).contains("REASON"));
    }

    #[test]
    fn colour_is_on_the_cell_and_does_not_move_anything() {
        let text = example().render(None);
        assert!(text.contains("\u{1b}[32mhealthy"), "{text:?}");
    }

    #[test]
    fn long_text_is_wrapped_to_the_terminal() {
        let mut table = example();
        table.row([
            "c".into(),
            "1 B".into(),
            "x".into(),
            "many words that do not fit beside the rest ".repeat(3).into(),
        ]);
        let text = plain(&table.render(Some(80)));
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    }
}
