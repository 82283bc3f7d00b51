//! Slots over time, as SVG: one band a policy, one line a slot.

use std::fmt::Write;

use super::figures::{Life, Run};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 16.0;
const LINE: f64 = 9.0;
const HEAD: f64 = 34.0;

/// Draws runs on one time axis.
pub fn draw(runs: &[Run]) -> String {
    let end = runs.iter().map(|run| run.seconds).fold(1e-9, f64::max);
    let bands: Vec<_> = runs
        .iter()
        .map(|run| {
            let (lives, slots) = slots(run);
            (run, lives, slots)
        })
        .collect();
    let height: f64 =
        bands.iter().map(|(_, _, slots)| HEAD + LINE * *slots as f64 + 10.0).sum::<f64>() + 30.0;
    let x = |seconds: f64| LEFT + (WIDTH - 2.0 * LEFT) * seconds / end;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let mut put = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    let bar = |from: f64, to: f64, y: f64, fill: &str| {
        let width = (x(to) - x(from)).max(0.5);
        let (x, line) = (x(from), LINE - 1.0);
        format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{line}\" fill=\"{fill}\"/>"
        )
    };
    let mut y = 0.0;
    for (run, lives, slots) in bands {
        let figures = run.figures();
        let (policy, seconds) = (&run.policy, run.seconds);
        put(format!(
            "<text x=\"{LEFT}\" y=\"{:.0}\"><tspan font-weight=\"bold\">{policy}</tspan>: \
             {seconds:.1} s, {:.0} tokens/s, slots of use {:.0} % of the time they are held</text>",
            y + 22.0,
            figures[0],
            figures[2]
        ));
        y += HEAD;
        for (slot, life) in lives {
            let line = y + LINE * slot as f64;
            put(bar(life.admitted, life.first, line, "#e69f00"));
            put(bar(life.first, life.finished, line, "#0072b2"));
            if life.released > life.finished {
                put(bar(life.finished, life.released, line, "#d8d8d8"));
            }
        }
        y += LINE * slots as f64 + 10.0;
    }
    let mut at = LEFT;
    for (fill, what) in
        [("#e69f00", "prompt"), ("#0072b2", "output"), ("#d8d8d8", "held, of no use")]
    {
        put(format!(
            "<rect x=\"{at}\" y=\"{:.0}\" width=\"12\" height=\"12\" fill=\"{fill}\"/>",
            y + 6.0
        ));
        put(format!("<text x=\"{}\" y=\"{:.0}\">{what}</text>", at + 18.0, y + 17.0));
        at += 150.0;
    }
    let _ = write!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{end:.1} s</text>\n</svg>\n",
        WIDTH - LEFT,
        y + 17.0
    );
    svg
}

/// Which slot each request had: the first that was free when it was admitted.
fn slots(run: &Run) -> (Vec<(usize, &Life)>, usize) {
    let mut lives: Vec<&Life> = run.lives.iter().collect();
    lives.sort_by(|a, b| a.admitted.total_cmp(&b.admitted));
    let mut free_at: Vec<f64> = Vec::new();
    let mut placed = Vec::new();
    for life in lives {
        let slot = free_at.iter().position(|&free| free <= life.admitted).unwrap_or_else(|| {
            free_at.push(0.0);
            free_at.len() - 1
        });
        free_at[slot] = life.released;
        placed.push((slot, life));
    }
    let count = free_at.len();
    (placed, count)
}
