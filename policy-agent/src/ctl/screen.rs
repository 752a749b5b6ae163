//! Where a command writes: data, messages, colour and the time zone of times.

use std::io::{self, IsTerminal as _, Write};

use comfy_table::{Table, presets};
use jiff::tz::TimeZone;
use prost_types::Timestamp;

/// Data on `out`, everything else on `err`.
pub struct Screen<'a> {
    /// Standard output.
    pub out: Box<dyn Write + 'a>,
    /// Standard error.
    pub err: Box<dyn Write + 'a>,
    /// Whether `out` understands colour.
    pub colour: bool,
    /// Zone in which times are told.
    pub zone: TimeZone,
}

/// Colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Bad.
    Red,
    /// Good.
    Green,
    /// Look here.
    Yellow,
    /// Less important.
    Dim,
}

impl Screen<'static> {
    /// The screen of this process. Colour only on a terminal, and not where NO_COLOR is set.
    #[must_use]
    pub fn of_process() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colour: wanted && io::stdout().is_terminal(),
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            zone: TimeZone::system(),
        }
    }
}

impl Screen<'_> {
    /// Text in a colour, where there are colours.
    #[must_use]
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        paint(self.colour, colour, text)
    }

    /// Writes rows under their headings.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn table(&mut self, headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(headings);
        table.add_rows(rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect::<Vec<_>>()));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        writeln!(self.out, "{}", table.trim_fmt())
    }
}

/// The text on one line and without control characters: what an object says must not move the cursor, nor look like
/// a line of ours.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Parts that are there, joined by colons, as [`plain`] text.
#[must_use]
pub fn joined(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    plain(&parts.join(": "))
}

/// Text in a colour if `colours`.
#[must_use]
pub fn paint(colours: bool, colour: Colour, text: &str) -> String {
    if !colours {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Red => "31",
        Colour::Green => "32",
        Colour::Yellow => "33",
        Colour::Dim => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// A time as text; a dash for one that is absent or out of range.
#[must_use]
pub fn time(zone: &TimeZone, time: Option<&Timestamp>, format: &str) -> String {
    time.and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok())
        .map_or_else(|| "-".to_owned(), |time| time.to_zoned(zone.clone()).strftime(format).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_stay_off_the_screen() {
        assert_eq!(joined(&["a\nb", "", "\u{1b}[2Jc"]), "a b:  [2Jc");
    }
}
