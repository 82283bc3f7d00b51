//! The comparison as one self-contained HTML page: no script, no network, nothing to install.

mod axis;
mod curves;
mod frame;
mod labels;
mod slots;
mod window;

#[cfg(test)]
mod tests;

use axis::Axis;
use frame::escape;
use window::Window;

use crate::metrics::{Run, Timeline, Unit, ratio};
use crate::numbers::{brief, fixed, group};
use crate::table::{notes, sections};

const STYLE: &str = include_str!("style.css");

/// Hatching for slots held without use; every chart of the page refers to it.
const HATCH: &str = "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\">\
    <defs><pattern id=\"hatch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
    patternTransform=\"rotate(45)\"><rect class=\"hatch-ground\" width=\"5\" height=\"5\"/>\
    <rect class=\"hatch-line\" width=\"1.4\" height=\"5\"/></pattern></defs></svg>\n";

/// Renders the report. Charts over time need runs recorded with their timeline.
pub(crate) fn html(trace: &str, device: &str, config: &[(String, String)], runs: &[Run]) -> String {
    let title = format!("inflight replay: {}", escape(trace));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{HATCH}<main>\n\
         {}{}{}{}{}</main>\n</body>\n</html>\n",
        header(trace, device, runs),
        summary(runs),
        over_time(runs),
        distributions(runs),
        settings(config),
    )
}

fn header(trace: &str, device: &str, runs: &[Run]) -> String {
    let requests = runs.iter().map(|run| run.summary.requests).max().unwrap_or(0);
    let plural = if requests == 1 { "" } else { "s" };
    format!(
        "<header>\n<h1>{}</h1>\n<p>{} request{plural} replayed on {}</p>\n{}</header>\n",
        escape(trace),
        group(requests),
        escape(device),
        verdict(runs).unwrap_or_default()
    )
}

/// The comparison in a sentence, when there is one to make.
fn verdict(runs: &[Run]) -> Option<String> {
    let [first, last] = runs else { return None };
    let (before, after) = (&first.summary, &last.summary);
    let (slow, fast) = (before.output_tokens_per_s?, after.output_tokens_per_s?);
    let per = match last.config.unit {
        Unit::Seconds => "per second",
        Unit::Steps => "per step",
    };
    let share = |share: Option<f64>| Some(fixed(share? * 100.0, 0) + " %");
    Some(format!(
        "<p class=\"verdict\"><b>{}</b> produces <b>{}×</b> the output tokens {per} of <b>{}</b>: \
         {} against {}. Its slots do useful work {} of the time, against {}.</p>\n",
        escape(&last.config.policy),
        brief(ratio(fast, slow)?),
        escape(&first.config.policy),
        brief(fast),
        brief(slow),
        share(after.slot_utilization)?,
        share(before.slot_utilization)?,
    ))
}

fn summary(runs: &[Run]) -> String {
    let sections = sections(runs);
    let compares = sections.iter().flat_map(|s| &s.rows).any(|row| row.change.is_some());
    let names: String =
        runs.iter().map(|run| format!("<th>{}</th>", escape(&run.config.policy))).collect();
    let body: String = sections
        .iter()
        .map(|section| {
            let rows: String = section
                .rows
                .iter()
                .map(|row| {
                    let cells: String =
                        row.cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
                    let change = match &row.change {
                        Some(change) => format!("<td class=\"change\">{}</td>", escape(change)),
                        None if compares => "<td></td>".to_owned(),
                        None => String::new(),
                    };
                    format!("<tr><th>{}</th>{cells}{change}</tr>\n", escape(&row.label))
                })
                .collect();
            format!(
                "<tbody>\n<tr class=\"group\"><th>{}</th></tr>\n{rows}</tbody>\n",
                section.title
            )
        })
        .collect();
    let change = if compares { "<th>change</th>" } else { "" };
    let notes: String = notes(runs).map(|note| format!("<li>{}</li>", escape(note))).collect();
    format!(
        "<section>\n<h2>Summary</h2>\n<div class=\"scroll\"><table>\n\
         <thead><tr><th></th>{names}{change}</tr></thead>\n{body}</table></div>\n\
         <ul class=\"notes\">{notes}</ul>\n</section>\n"
    )
}

fn over_time(runs: &[Run]) -> String {
    let kept: Vec<&Timeline> = runs.iter().filter_map(|run| run.timeline.as_ref()).collect();
    if kept.iter().all(|timeline| timeline.intervals.is_empty()) {
        return String::new();
    }
    let unit = runs[0].config.unit;
    let window = Window::choose(&kept, slots::bars(runs));
    let (band, marked) = match window.partial {
        true => (Some(&window), "<p>The band marks the stretch shown above.</p>\n"),
        false => (None, ""),
    };
    let per = match unit {
        Unit::Seconds => "second",
        Unit::Steps => "step",
    };
    let utilization = curves::over_time(
        "Slots doing useful work over time",
        runs,
        band,
        |_| Axis::percent(&[0, 25, 50, 75, 100]),
        |rate, run| rate.useful_rows / run.config.slots.max(1) as f64,
    );
    let throughput =
        curves::over_time("Throughput over time", runs, None, Axis::amount, |rate, _| {
            rate.output_tokens
        });
    let waiting =
        curves::over_time("Queue over time", runs, None, Axis::amount, |rate, _| rate.waiting);
    format!(
        "<section>\n<h2>Who holds which slot</h2>\n<p>{}</p>\n{}</section>\n\
         <section>\n<h2>Slots doing useful work</h2>\n{marked}{utilization}</section>\n\
         <section>\n<h2>Output tokens per {per}</h2>\n{throughput}</section>\n\
         <section>\n<h2>Requests waiting</h2>\n{waiting}</section>\n\
         <section>\n<h2>KV cache</h2>\n<p>Blocks held, and what tokens fill of them, as a share of \
         all usable blocks.</p>\n{}</section>\n",
        slots::caption(&window, &kept, unit),
        slots::panels(runs, &window),
        curves::kv(runs)
    )
}

fn distributions(runs: &[Run]) -> String {
    let charts = curves::distribution("Latency", runs, |latencies| &latencies.latency)
        + &curves::distribution("Time to first token", runs, |latencies| &latencies.ttft)
        + &curves::distribution("Time per output token", runs, |latencies| &latencies.tpot);
    if charts.is_empty() {
        return charts;
    }
    let wide = if runs.len() > 2 { " wide" } else { "" };
    format!(
        "<section>\n<h2>How long requests take</h2>\n\
         <p>Share of the requests that took at most so long.</p>\n\
         <div class=\"row{wide}\">\n{charts}</div>\n</section>\n"
    )
}

fn settings(config: &[(String, String)]) -> String {
    let items: String = config
        .iter()
        .map(|(key, value)| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(key), escape(value))
        })
        .collect();
    if items.is_empty() {
        return items;
    }
    format!("<section>\n<h2>Settings</h2>\n<dl>\n{items}</dl>\n</section>\n")
}
