//! Tables for a terminal of 80 columns.

/// The width that no table goes beyond, unless the values that must stay whole do.
pub const WIDTH: usize = 80;
/// The least that a column is cut to.
const LEAST: usize = 4;
const GAP: usize = 2;

/// Rows under a header. The first column is what a user copies into the next command, so it is
/// never cut; the others give way when the whole is too wide, the widest first.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// Adds a row with as many cells as the header.
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.rows[0].len(), "a cell for every column");
        self.rows.push(cells);
    }

    /// The table as lines, at most `width` characters wide where that is possible.
    pub fn render(&self, width: usize) -> String {
        let widths = fit(self.natural_widths(), width);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let cell = cut(cell, *width);
                line.push_str(&format!("{cell:<width$}{:GAP$}", ""));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn natural_widths(&self) -> Vec<usize> {
        (0..self.rows[0].len())
            .map(|idx| {
                let lengths = self.rows.iter().map(|row| row[idx].chars().count());
                lengths.max().unwrap_or_default()
            })
            .collect()
    }
}

/// Narrows the widest columns but the first until all fit.
fn fit(mut widths: Vec<usize>, width: usize) -> Vec<usize> {
    let gaps = GAP * widths.len().saturating_sub(1);
    let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
    while excess > 0 {
        let Some(widest) = widths[1..].iter_mut().max().filter(|width| **width > LEAST) else {
            break;
        };
        *widest -= 1;
        excess -= 1;
    }
    widths
}

/// `cell` in one line of at most `width` characters, the last one an ellipsis when more follows.
fn cut(cell: &str, width: usize) -> String {
    let cell = cell.lines().next().unwrap_or_default();
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_blanks_at_the_end() {
        let mut table = Table::new(&["NAME", "STATE", "NOTE"]);
        table.row(["a".into(), "healthy".into(), String::new()]);
        table.row(["longer".into(), "ok".into(), "fine".into()]);
        assert_eq!(
            table.render(WIDTH),
            "NAME    STATE    NOTE\na       healthy\nlonger  ok       fine\n"
        );
    }

    #[test]
    fn the_widest_column_gives_way_and_the_first_never() {
        let mut table = Table::new(&["ID", "NOTE", "IMAGE"]);
        table.row(["i".repeat(30), "n".repeat(60), "m".repeat(20)]);
        let text = table.render(WIDTH);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains(&"i".repeat(30)));
        assert!(text.contains(&"m".repeat(20)), "only the widest is cut: {text}");
        assert!(text.contains("nnn…"));
    }

    #[test]
    fn only_the_first_line_of_a_cell_is_shown() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["x".into(), "one\ntwo".into()]);
        assert_eq!(table.render(WIDTH), "A  B\nx  one\n");
    }
}
