//! The frame of a chart: gridlines, tick labels, and a plot as wide as the page allows.
//!
//! Positions along x are percentages and along y pixels, so a chart stretches with the page while
//! its text keeps its size. Paths, which know no percentages, live in a nested stretched `<svg>`.

use super::axis::Axis;

/// The extent of a stretched path along x.
const PATH_WIDTH: f64 = 1000.0;

/// A plot's axes and height.
pub(super) struct Frame {
    /// Along the page.
    pub(super) x: Axis,
    /// Bottom to top; `None` for a chart that labels its own rows.
    pub(super) y: Option<Axis>,
    /// Pixels.
    pub(super) height: f64,
    /// What a screen reader says of it.
    pub(super) title: String,
}

impl Frame {
    /// A pixel position for a value on the y axis.
    pub(super) fn y(&self, value: f64) -> f64 {
        self.y.as_ref().map_or(0.0, |axis| (1.0 - axis.at(value)) * self.height)
    }

    /// A fraction of the width for a value on the x axis.
    pub(super) fn x(&self, value: f64) -> f64 {
        self.x.at(value)
    }

    /// The chart around its marks.
    pub(super) fn draw(&self, marks: &str) -> String {
        let height = self.height;
        let vertical: String = (self.x.ticks.iter().enumerate())
            .map(|(i, tick)| {
                // Every other label makes room on a narrow page.
                let last = self.x.ticks.len() - 1;
                let class = if (last - i) % 2 == 1 { " class=\"alt\"" } else { "" };
                let (x, label) = (percent(tick.at), escape(&tick.label));
                format!(
                    "<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y2=\"{height}\"/>\
                     <text{class} x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    height + 17.0
                )
            })
            .collect();
        let horizontal: String = (self.y.iter().flat_map(|axis| &axis.ticks))
            .map(|tick| {
                let (y, label) = (pixels((1.0 - tick.at) * height), escape(&tick.label));
                format!(
                    "<line class=\"grid\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>\
                     <text x=\"-8\" y=\"{y}\" dy=\".35em\" text-anchor=\"end\">{label}</text>"
                )
            })
            .collect();
        format!(
            "<div class=\"plot\"><svg role=\"img\" aria-label=\"{}\" width=\"100%\" \
             height=\"{}\">{vertical}{horizontal}{marks}\
             <line class=\"base\" x2=\"100%\" y1=\"{height}\" y2=\"{height}\"/></svg></div>\n",
            escape(&self.title),
            height + 22.0
        )
    }

    /// A line through points given as (fraction of the width, pixel).
    pub(super) fn line(&self, points: &[(f64, f64)], class: &str) -> String {
        self.path(&format!("<path class=\"line {class}\" d=\"{}\"/>", trace(points)))
    }

    /// The area between such a line and the x axis.
    pub(super) fn area(&self, points: &[(f64, f64)], class: &str) -> String {
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return String::new();
        };
        let mut outline = points.to_vec();
        outline.extend([(last.0, self.height), (first.0, self.height)]);
        self.path(&format!("<path class=\"{class}\" d=\"{}Z\"/>", trace(&outline)))
    }

    fn path(&self, path: &str) -> String {
        let height = self.height;
        format!(
            "<svg width=\"100%\" height=\"{height}\" viewBox=\"0 0 {PATH_WIDTH} {height}\" \
             preserveAspectRatio=\"none\">{path}</svg>"
        )
    }
}

/// A fraction as a percentage, fine enough for a wide screen.
pub(super) fn percent(fraction: f64) -> String {
    trim(format!("{:.3}", fraction * 100.0)) + "%"
}

/// Pixels to a tenth.
pub(super) fn pixels(y: f64) -> String {
    trim(format!("{y:.1}"))
}

/// Text as HTML content or attribute value.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in HTML at all, not even escaped.
            c if c.is_control() && !c.is_whitespace() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn trace(points: &[(f64, f64)]) -> String {
    let place = |&(x, y): &(f64, f64)| format!("{} {}", pixels(x * PATH_WIDTH), pixels(y));
    let places: Vec<String> = points.iter().map(place).collect();
    if places.is_empty() { String::new() } else { format!("M{}", places.join("L")) }
}

fn trim(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(percent(0.5), "50%");
        assert_eq!(percent(1.0 / 3.0), "33.333%");
        assert_eq!(pixels(100.0), "100");
        assert_eq!(pixels(0.04), "0");
    }

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("<a href='x'>&\"\u{0}"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
    }
}
