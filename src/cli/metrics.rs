//! `mcpeg metrics query`: what the running sidecar has measured in the last hours, as lines and figures.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::control::{SocketArgs, ask};
use super::{failed, say};
use crate::config::{self, Sources};
use crate::ports::Aggregate;

#[derive(Debug, Args)]
pub struct MetricsArgs {
    #[command(subcommand)]
    command: MetricsCommand,
}

#[derive(Debug, Subcommand)]
enum MetricsCommand {
    /// Show the points of a metric, one line a series; without a name, what there is
    Query(QueryArgs),
}

#[derive(Debug, Args)]
struct QueryArgs {
    /// As docs/METRICS.md has it: mcpeg.cache.lookups
    name: Option<String>,
    /// Only series with this tag; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// How far back
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    since: Duration,
    /// One figure of all points: avg, max, min, sum, rate, p50, p95, p99
    #[arg(long, value_name = "WHICH", value_parser = aggregate)]
    aggregate: Option<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

pub fn metrics(sources: &Sources, args: &MetricsArgs) -> ExitCode {
    let MetricsCommand::Query(args) = &args.command;
    let mut path = format!("/v1/metrics?since_ms={}", args.since.as_millis());
    let mut add = |key: &str, value: &str| {
        path.push_str(&format!("&{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    };
    args.name.iter().for_each(|name| add("name", name));
    args.tag.iter().for_each(|(key, value)| add("tag", &format!("{key}={value}")));
    args.aggregate.iter().for_each(|aggregate| add("aggregate", aggregate));
    ask(sources, &args.socket, "GET", &path, |status, answer| {
        if status != 200 {
            return failed(
                answer["error"].as_str().unwrap_or("the sidecar answered with something else than expected"),
            );
        }
        if args.socket.json {
            say(&format!("{answer:#}"));
            return ExitCode::SUCCESS;
        }
        let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
        if series.is_empty() {
            return failed("there are no such points; `mcpeg metrics query` without a name says what there is");
        }
        let is_list = args.name.is_none();
        series.iter().for_each(|series| say(&line(series, is_list)));
        ExitCode::SUCCESS
    })
}

/// `NAME{KEY=VALUE, ...}  ▁▂█  LAST  avg VALUE`
fn line(series: &Value, is_list: bool) -> String {
    let tags = series["tags"].as_object().into_iter().flatten();
    let tags: Vec<String> = tags.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let mut line = series["name"].as_str().unwrap_or_default().to_owned();
    if !tags.is_empty() {
        line.push_str(&format!("{{{}}}", tags.join(", ")));
    }
    if is_list {
        return line;
    }
    let values: Vec<f64> =
        series["points"].as_array().into_iter().flatten().filter_map(|point| point[1].as_f64()).collect();
    line.push_str(&format!("  {}", sparkline(&values, WIDTH)));
    if let Some(last) = values.last() {
        line.push_str(&format!("  {}", short(*last)));
    }
    if let (Some(which), Some(value)) = (series["aggregate"].as_str(), series["value"].as_f64()) {
        line.push_str(&format!("  {which} {}", short(value)));
    }
    line
}

/// As many characters as `width` at most; each is the highest of the values that it stands for.
fn sparkline(values: &[f64], width: usize) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let size = values.len().div_ceil(width);
    let highest: Vec<f64> =
        values.chunks(size).map(|chunk| chunk.iter().copied().fold(f64::NEG_INFINITY, f64::max)).collect();
    let low = highest.iter().copied().fold(f64::INFINITY, f64::min);
    let high = highest.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |value: f64| match high > low {
        // Between 0 and 1, so the index is one of the levels.
        true => ((value - low) / (high - low) * (LEVELS.len() - 1) as f64).round() as usize,
        false => 0,
    };
    highest.into_iter().map(|value| LEVELS[level(value).min(LEVELS.len() - 1)]).collect()
}

fn short(value: f64) -> String {
    let text =
        if value.abs() >= 1000.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.4}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "expected a duration such as 15m, 1h or 2d".to_owned())
}

fn aggregate(text: &str) -> Result<String, String> {
    let words: Vec<&str> = Aggregate::ALL.iter().map(|(word, _)| *word).collect();
    if Aggregate::of(text).is_none() {
        return Err(format!("expected one of {}", words.join(", ")));
    }
    Ok(text.to_owned())
}

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const WIDTH: usize = 48;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_series_is_a_line_with_its_shape_and_its_figure() {
        let series = json!({ "name": "a.b", "tags": { "k": "v", "l": "w" }, "points": [[1, 0.0], [2, 3.5], [3, 7.0]],
                             "aggregate": "avg", "value": 3.5 });
        assert_eq!(line(&series, false), "a.b{k=v, l=w}  ▁▅█  7  avg 3.5");
        assert_eq!(line(&series, true), "a.b{k=v, l=w}");
        assert_eq!(line(&json!({ "name": "a", "tags": {}, "points": [] }), false), "a  -");
        assert_eq!(sparkline(&[1.0, 1.0], 48), "▁▁");
        assert_eq!(sparkline(&(0..96).map(f64::from).collect::<Vec<_>>(), 48).chars().count(), 48);
        assert_eq!((short(0.12345), short(1234.5), short(-2.0)), ("0.1235".into(), "1234".into(), "-2".into()));
    }
}
