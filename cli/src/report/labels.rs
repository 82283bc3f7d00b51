//! Finds room for a line's name next to the line, away from the others.

const LINE_HEIGHT: f64 = 15.0;
/// Between a name and its own line.
const GAP: f64 = 4.0;
/// More distance from other lines than this is no better.
const ENOUGH: f64 = 24.0;

/// Where a name goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Label {
    /// Fraction of the width.
    pub(super) x: f64,
    /// Pixel of the text's middle.
    pub(super) y: f64,
    /// SVG `text-anchor`.
    pub(super) anchor: &'static str,
}

/// A named line through points given as (fraction of the width, pixel).
pub(super) struct Line<'a> {
    /// What is written next to it.
    pub(super) name: &'a str,
    /// By ascending x.
    pub(super) points: &'a [(f64, f64)],
}

#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// Places the names of all lines in a plot `size` pixels wide and high; `None` for a line without
/// points. Where the plot turns out wider, only more room opens between the names.
pub(super) fn place(lines: &[Line<'_>], size: (f64, f64)) -> Vec<Option<Label>> {
    let dense: Vec<Vec<(f64, f64)>> =
        lines.iter().map(|line| densify(line.points, size.0)).collect();
    let mut taken: Vec<Area> = Vec::new();
    let mut labels = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let width = line.name.chars().count() as f64 * 6.6 + 4.0;
        let others: Vec<&[(f64, f64)]> =
            (0..lines.len()).filter(|&j| j != i).map(|j| dense[j].as_slice()).collect();
        let stride = (dense[i].len() / 80).max(1);
        let best = (dense[i].iter().step_by(stride))
            .flat_map(|&point| candidates(point, width))
            .filter(|(area, _)| area.inside(size))
            .map(|(area, label)| {
                // A name in the middle reads best, all else equal.
                let centre = (area.left + area.right) / 2.0 / size.0 - 0.5;
                let score = score(&area, &dense[i], &others, &taken) - centre.abs() * 6.0;
                (score, area, label)
            })
            .max_by(|a, b| a.0.total_cmp(&b.0));
        labels.push(best.map(|(_, area, label)| {
            taken.push(area);
            Label { x: label.x / size.0, ..label }
        }));
    }
    labels
}

/// The four ways to write beside a point; x is still in pixels.
fn candidates((x, y): (f64, f64), width: f64) -> [(Area, Label); 4] {
    let middle = LINE_HEIGHT / 2.0;
    let at = |x: f64, y: f64, left: f64, anchor| {
        let area = Area { left, right: left + width, top: y - middle, bottom: y + middle };
        (area, Label { x, y, anchor })
    };
    [
        at(x, y - middle - GAP, x - width / 2.0, "middle"),
        at(x, y + middle + GAP, x - width / 2.0, "middle"),
        at(x + GAP * 2.0, y, x + GAP * 2.0, "start"),
        at(x - GAP * 2.0, y, x - GAP * 2.0 - width, "end"),
    ]
}

/// Higher is better: far from everything else, and not across its own line.
fn score(area: &Area, own: &[(f64, f64)], others: &[&[(f64, f64)]], taken: &[Area]) -> f64 {
    let clearance = (others.iter().flat_map(|line| area.near(line)))
        .map(|&point| area.distance(point))
        .chain(taken.iter().map(|other| area.gap(other)))
        .fold(ENOUGH, f64::min);
    let crossed = area.near(own).iter().filter(|&&point| area.distance(point) < GAP / 2.0).count();
    let blocked = if clearance < GAP / 2.0 { 50.0 } else { 0.0 };
    clearance - crossed.min(20) as f64 - blocked
}

impl Area {
    fn inside(&self, (width, height): (f64, f64)) -> bool {
        self.left >= 0.0 && self.right <= width && self.top >= 0.0 && self.bottom <= height
    }

    /// The points of a line, ascending in x, that can matter to this area.
    fn near<'a>(&self, line: &'a [(f64, f64)]) -> &'a [(f64, f64)] {
        let from = line.partition_point(|point| point.0 < self.left - ENOUGH);
        let to = line.partition_point(|point| point.0 <= self.right + ENOUGH);
        &line[from..to]
    }

    fn distance(&self, (x, y): (f64, f64)) -> f64 {
        let dx = (self.left - x).max(x - self.right).max(0.0);
        let dy = (self.top - y).max(y - self.bottom).max(0.0);
        dx.hypot(dy)
    }

    fn gap(&self, other: &Self) -> f64 {
        let dx = (self.left - other.right).max(other.left - self.right).max(0.0);
        let dy = (self.top - other.bottom).max(other.top - self.bottom).max(0.0);
        dx.hypot(dy)
    }
}

/// The line's points in pixels, at most 3 px apart so that none slips through a label.
fn densify(points: &[(f64, f64)], width: f64) -> Vec<(f64, f64)> {
    let pixels: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x * width, y)).collect();
    let mut dense: Vec<(f64, f64)> = pixels.first().copied().into_iter().collect();
    for pair in pixels.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let pieces = ((to.0 - from.0).hypot(to.1 - from.1) / 3.0).ceil().max(1.0);
        for i in 1..=pieces as usize {
            let share = i as f64 / pieces;
            dense.push((from.0 + (to.0 - from.0) * share, from.1 + (to.1 - from.1) * share));
        }
    }
    dense
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_off_lines_and_each_other() {
        let (low, high) = ([(0.0, 90.0), (1.0, 90.0)], [(0.0, 40.0), (1.0, 40.0)]);
        let lines = [Line { name: "low", points: &low }, Line { name: "high", points: &high }];
        let labels = place(&lines, (420.0, 100.0));
        let (low, high) = (labels[0].unwrap(), labels[1].unwrap());
        assert!((low.y - 90.0).abs() > 7.0 && (low.y - 40.0).abs() > 7.0);
        assert!((high.y - 40.0).abs() > 7.0 && (high.y - low.y).abs() > 15.0);
    }

    #[test]
    fn nothing_to_name() {
        assert_eq!(place(&[Line { name: "none", points: &[] }], (420.0, 100.0)), [None]);
    }
}
