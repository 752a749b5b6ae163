//! Tables of costs and ratios, and the gates that they must keep.

use std::fmt;

/// How much wider a gate is where only processor time can be measured.
const WIDER: f64 = 1.10;

/// A limit on a measured ratio.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gate {
    /// Its number in the list of targets.
    pub(super) id: &'static str,
    /// What is compared.
    pub(super) what: String,
    /// What was measured.
    pub(super) value: f64,
    /// What it may be.
    pub(super) limit: f64,
    /// Whether the machine had counters.
    pub(super) exact: bool,
}

/// How a gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    /// It holds.
    Holds,
    /// It holds with the wider limit for processor time.
    HoldsWider,
    /// It does not hold.
    Broken,
}

impl Gate {
    /// Whether it holds.
    pub(super) fn stand(&self) -> Stand {
        if self.value <= self.limit {
            Stand::Holds
        } else if !self.exact && self.value <= self.wider() {
            Stand::HoldsWider
        } else {
            Stand::Broken
        }
    }

    /// A limit near one becomes a tenth over one: what time alone can tell.
    fn wider(&self) -> f64 {
        if self.limit >= 1.0 && self.limit < WIDER { WIDER } else { self.limit * WIDER }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, what, value, limit, .. } = self;
        let stand = match self.stand() {
            Stand::Holds => "holds".to_owned(),
            Stand::HoldsWider => {
                format!("holds within {:.2}, the limit for measurements by time", self.wider())
            }
            Stand::Broken => "DOES NOT HOLD".to_owned(),
        };
        write!(f, "  {id:4} {what:58} {value:7.3}  <= {limit:5.2}  {stand}")
    }
}

/// Prints the gates; false when one is broken.
pub(super) fn judge(gates: &[Gate]) -> bool {
    println!("\ngates:");
    for gate in gates {
        println!("{gate}");
    }
    gates.iter().all(|gate| gate.stand() != Stand::Broken)
}

/// A table with a head; the first column is left-aligned.
pub(super) fn table(head: &[String], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(head.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in std::iter::once(head).chain(rows.iter().map(Vec::as_slice)) {
        let mut line = String::from(" ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &if column == 0 { format!(" {cell:width$}") } else { format!("  {cell:>width$}") };
        }
        println!("{line}");
    }
}

/// The middle of some numbers.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(value: f64, limit: f64, exact: bool) -> Stand {
        Gate { id: "T1", what: String::new(), value, limit, exact }.stand()
    }

    #[test]
    fn gates_hold_or_not() {
        assert_eq!(gate(1.07, 1.08, true), Stand::Holds);
        assert_eq!(gate(1.09, 1.08, true), Stand::Broken);
        assert_eq!(gate(1.09, 1.08, false), Stand::HoldsWider);
        assert_eq!(gate(1.11, 1.08, false), Stand::Broken);
        assert_eq!(gate(3.2, 3.0, false), Stand::HoldsWider);
        assert_eq!(gate(f64::NAN, 3.0, false), Stand::Broken);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
