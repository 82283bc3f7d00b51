//! Finds room for a line's name next to the line, away from the others.

use std::cmp::Ordering;

const LINE_HEIGHT: f64 = 15.0;
/// Between a name and its own line.
const GAP: f64 = 4.0;
/// More distance from other lines than this is no better.
const ENOUGH: f64 = 24.0;
/// Score of a name with a leader of no length: next to the line is better, but not at any price.
const LEADER: f64 = 6.0;
/// Lines are followed in pieces of this many pixels, so that none slips through a name.
const PIECE: f64 = 3.0;

/// A point: at first (fraction of the width, pixel), pixels both while placing.
type Point = (f64, f64);

/// Where a name goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Label {
    /// Fraction of the width.
    pub(super) x: f64,
    /// Pixel of the text's middle.
    pub(super) y: f64,
    /// SVG `text-anchor`.
    pub(super) anchor: &'static str,
    /// From the line to a name that found no room next to it.
    pub(super) leader: Option<[Point; 2]>,
}

/// A named line.
pub(super) struct Line<'a> {
    /// What is written next to it.
    pub(super) name: &'a str,
    /// By ascending x.
    pub(super) points: &'a [Point],
}

#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

struct Candidate {
    score: f64,
    area: Area,
    label: Label,
}

/// What a name must keep off.
struct Surroundings<'a> {
    size: Point,
    own: &'a [Point],
    others: Vec<&'a [Point]>,
    taken: &'a [Area],
}

/// Places the names of all lines in a plot `size` pixels wide and high; `None` for a line without
/// points. Where the plot turns out wider, only more room opens between the names.
pub(super) fn place(lines: &[Line<'_>], size: Point) -> Vec<Option<Label>> {
    let dense: Vec<Vec<Point>> = lines.iter().map(|line| densify(line.points, size.0)).collect();
    let extent = |i: usize| match dense[i][..] {
        [first, .., last] => last.0 - first.0,
        _ => 0.0,
    };
    // The shortest line has the fewest places to choose from.
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|&a, &b| extent(a).total_cmp(&extent(b)));
    let mut taken: Vec<Area> = Vec::new();
    let mut labels = vec![None; lines.len()];
    for i in order {
        // A name too long for the plot sticks out somewhere rather than go missing.
        let width = (lines[i].name.chars().count() as f64 * 6.8 + 4.0).min(size.0 * 0.6);
        let others = (0..lines.len()).filter(|&j| j != i).map(|j| dense[j].as_slice()).collect();
        let around = Surroundings { size, own: &dense[i], others, taken: &taken };
        let best = match around.next_to(width) {
            Some(near) if near.score >= LEADER => Some(near),
            poor => poor.into_iter().chain(around.apart(width)).max_by(by_score),
        };
        if let Some(Candidate { area, label, .. }) = best {
            taken.push(area);
            let fraction = |(x, y): Point| (x / size.0, y);
            let leader = label.leader.map(|ends| ends.map(fraction));
            labels[i] = Some(Label { x: label.x / size.0, leader, ..label });
        }
    }
    labels
}

impl Surroundings<'_> {
    /// Above, below, right and left of points of the line.
    fn next_to(&self, width: f64) -> Option<Candidate> {
        let middle = LINE_HEIGHT / 2.0;
        let stride = (self.own.len() / 80).max(1);
        let places = self.own.iter().step_by(stride).flat_map(|&(x, y)| {
            let level = y.clamp(middle, (self.size.1 - middle).max(middle));
            [
                (x, y - middle - GAP, x - width / 2.0, "middle"),
                (x, y + middle + GAP, x - width / 2.0, "middle"),
                (x + GAP * 2.0, level, x + GAP * 2.0, "start"),
                (x - GAP * 2.0, level, x - GAP * 2.0 - width, "end"),
            ]
        });
        places
            .map(|(x, y, left, anchor)| {
                let area = Area::new(left, y, width);
                let label = Label { x, y, anchor, leader: None };
                // A name in the middle reads best, all else equal.
                let centre = area.middle().0 / self.size.0 - 0.5;
                let blocked = if self.clearance(&area) < GAP / 2.0 { 50.0 } else { 0.0 };
                let crossed = area.near(self.own, GAP / 2.0).count().min(20) as f64 * 2.0;
                let score = self.clearance(&area) - crossed - blocked - centre.abs() * 6.0;
                Candidate { score, area, label }
            })
            .filter(|candidate| candidate.area.inside(self.size))
            .max_by(by_score)
    }

    /// Anywhere free, with a leader to the nearest point of the line.
    fn apart(&self, width: f64) -> Option<Candidate> {
        let steps = |length: f64, step: f64| {
            (0..).map(move |i| f64::from(i) * step).take_while(move |&x| x <= length)
        };
        let lefts = steps(self.size.0 - width, 10.0);
        let areas = lefts.flat_map(|left| {
            steps(self.size.1, 8.0).map(move |middle| Area::new(left, middle, width))
        });
        areas
            .filter(|area| area.inside(self.size) && self.clearance(area) > GAP)
            .filter(|area| area.near(self.own, GAP).next().is_none())
            .filter_map(|area| {
                let nearest = self
                    .own
                    .iter()
                    .min_by(|a, b| area.distance(**a).total_cmp(&area.distance(**b)));
                let to = *nearest?;
                let (x, y) = area.middle();
                // On a wider page the name takes a smaller share: fix its end next to the leader.
                let (x, anchor) = match to.0 {
                    end if end < area.left => (area.left, "start"),
                    end if end > area.right => (area.right, "end"),
                    _ => (x, "middle"),
                };
                let from = (x, area.closest(to).1);
                let path = densify(&[from, to], 1.0);
                let crosses = |line: &&&[Point]| path.iter().any(|point| touches(line, *point));
                let crossings = self.others.iter().filter(crosses).count() as f64;
                let length = (to.0 - from.0).hypot(to.1 - from.1);
                let score = LEADER - length * 0.3 - crossings * 10.0;
                let label = Label { x, y, anchor, leader: Some([from, to]) };
                Some(Candidate { score, area, label })
            })
            .max_by(by_score)
    }

    /// Distance to the nearest other line or name, as far as it matters.
    fn clearance(&self, area: &Area) -> f64 {
        (self.others.iter().flat_map(|line| area.near(line, ENOUGH)))
            .map(|point| area.distance(point))
            .chain(self.taken.iter().map(|other| area.gap(other)))
            .fold(ENOUGH, f64::min)
    }
}

fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    a.score.total_cmp(&b.score)
}

impl Area {
    fn new(left: f64, middle: f64, width: f64) -> Self {
        let half = LINE_HEIGHT / 2.0;
        Self { left, right: left + width, top: middle - half, bottom: middle + half }
    }

    fn middle(&self) -> Point {
        (f64::midpoint(self.left, self.right), f64::midpoint(self.top, self.bottom))
    }

    fn inside(&self, (width, height): Point) -> bool {
        self.left >= 0.0 && self.right <= width && self.top >= 0.0 && self.bottom <= height
    }

    /// The points of a line, which ascends in x, closer than `limit`.
    fn near(&self, line: &[Point], limit: f64) -> impl Iterator<Item = Point> {
        let from = line.partition_point(|point| point.0 < self.left - limit);
        let to = line.partition_point(|point| point.0 <= self.right + limit);
        line[from..to].iter().copied().filter(move |&point| self.distance(point) < limit)
    }

    /// The point of the area closest to a point.
    fn closest(&self, (x, y): Point) -> Point {
        (x.clamp(self.left, self.right), y.clamp(self.top, self.bottom))
    }

    fn distance(&self, point: Point) -> f64 {
        let closest = self.closest(point);
        (closest.0 - point.0).hypot(closest.1 - point.1)
    }

    fn gap(&self, other: &Self) -> f64 {
        let dx = (self.left - other.right).max(other.left - self.right).max(0.0);
        let dy = (self.top - other.bottom).max(other.top - self.bottom).max(0.0);
        dx.hypot(dy)
    }
}

fn touches(line: &[Point], (x, y): Point) -> bool {
    Area { left: x, right: x, top: y, bottom: y }.near(line, PIECE).next().is_some()
}

/// The line in pixels, in short pieces.
fn densify(points: &[Point], width: f64) -> Vec<Point> {
    let pixels: Vec<Point> = points.iter().map(|&(x, y)| (x * width, y)).collect();
    let mut dense: Vec<Point> = pixels.first().copied().into_iter().collect();
    for pair in pixels.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let pieces = ((to.0 - from.0).hypot(to.1 - from.1) / PIECE).ceil().max(1.0);
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

    const SIZE: Point = (420.0, 100.0);

    #[test]
    fn names_keep_off_lines_and_each_other() {
        let (low, high) = ([(0.0, 90.0), (1.0, 90.0)], [(0.0, 40.0), (1.0, 40.0)]);
        let lines = [Line { name: "low", points: &low }, Line { name: "high", points: &high }];
        let labels = place(&lines, SIZE);
        let (low, high) = (labels[0].unwrap(), labels[1].unwrap());
        assert!((low.y - 90.0).abs() > 7.0 && (low.y - 40.0).abs() > 7.0);
        assert!((high.y - 40.0).abs() > 7.0 && (high.y - low.y).abs() > 15.0);
        assert_eq!((low.leader, high.leader), (None, None));
    }

    #[test]
    fn a_hemmed_in_line_gets_a_leader() {
        let level = |y: f64| [(0.0, y), (1.0, y)];
        let [a, b, c] = [level(84.0), level(90.0), level(96.0)];
        let names = [("a", &a), ("b", &b), ("c", &c)];
        let labels = place(&names.map(|(name, points)| Line { name, points }), SIZE);
        let label = labels[1].unwrap();
        assert!(label.leader.is_some_and(|[_, to]| (to.1 - 90.0).abs() < 1.0), "{label:?}");
        assert!(label.y < 80.0);
    }

    #[test]
    fn nothing_to_name() {
        assert_eq!(place(&[Line { name: "none", points: &[] }], SIZE), [None]);
    }
}
