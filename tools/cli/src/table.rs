//! Tables that fit a screen: columns as wide as they must be, and cut off before lines get too long.

use console::{Style, measure_text_width, truncate_str};

/// Between two columns.
const GAP: &str = "  ";

/// A column.
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Numbers stand at its right end.
    pub right: bool,
    /// How narrow it may become when lines would be too long; none: it stays as it is.
    pub least: Option<usize>,
}

/// What stands in one place of a table.
pub struct Cell {
    /// Its text.
    pub text: String,
    /// How it is shown, where colours are.
    pub style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::new() }
    }
}

/// The lines of a table, none longer than `width` unless columns that stay as they are need more.
pub fn lines(columns: &[Column], rows: &[Vec<Cell>], width: usize) -> Vec<String> {
    let mut widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(n, column)| {
            let cells = rows.iter().map(|row| measure_text_width(&row[n].text));
            cells.chain([column.title.len()]).max().unwrap_or_default()
        })
        .collect();
    let gaps = GAP.len() * columns.len().saturating_sub(1);
    let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
    while over > 0 {
        // The one that has most to give.
        let most = (0..columns.len())
            .filter_map(|n| Some((widths[n].checked_sub(columns[n].least?)?, n)))
            .filter(|(give, _)| *give > 0)
            .max();
        let Some((_, n)) = most else { break };
        widths[n] -= 1;
        over -= 1;
    }
    let titles = columns.iter().map(|column| Cell::from(column.title.to_owned())).collect();
    std::iter::once(&titles).chain(rows).map(|row| line(columns, row, &widths)).collect()
}

fn line(columns: &[Column], row: &[Cell], widths: &[usize]) -> String {
    let mut line = String::new();
    for ((column, cell), &width) in columns.iter().zip(row).zip(widths) {
        let text = truncate_str(&cell.text, width, "…");
        let pad = " ".repeat(width - measure_text_width(&text));
        let shown = cell.style.apply_to(text).to_string();
        let (before, after) = if column.right { (pad.as_str(), "") } else { ("", pad.as_str()) };
        line = line + before + &shown + after + GAP;
    }
    line.trim_end().to_owned()
}

/// Breaks a text into lines; all but the first begin with `indent`. Spaces at its begin stay.
pub fn wrapped(text: &str, indent: &str, width: usize) -> Vec<String> {
    let begin = &text[..text.len() - text.trim_start().len()];
    let mut lines = vec![begin.to_owned()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| measure_text_width(line));
        if line > indent.len().max(begin.len()) && line + 1 + measure_text_width(word) > width {
            lines.push(format!("{indent}{word}"));
        } else if let Some(line) = lines.last_mut() {
            if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_numbers_stand_at_the_right() {
        let columns = [
            Column { title: "NAME", right: false, least: Some(4) },
            Column { title: "N", right: true, least: None },
        ];
        let row = |name: &str, n: &str| vec![Cell::from(name.to_owned()), n.to_owned().into()];
        let rows = [row("a", "1"), row("a-very-long-name", "1000")];
        assert_eq!(lines(&columns, &rows, 80)[1], "a                    1");
        let narrow = lines(&columns, &rows, 14);
        assert_eq!(narrow, ["NAME         N", "a            1", "a-very-…  1000"]);
        assert_eq!(wrapped("one two three", "  ", 8), ["one two", "  three"]);
        assert_eq!(wrapped(" one two", "  ", 5), [" one", "  two"]);
    }
}
