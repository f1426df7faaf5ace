//! What follows from the table: how sure it is, fleets, what matters, what would change.

use super::text::{or_dash, same};
use crate::capacity::{Answers, Group};
use crate::cli::table::{number, render, text, window_width};
use crate::report::text::number as figure;

/// What belongs to one workload and set of objectives.
pub fn of_group(answers: &Answers, group: &Group) -> String {
    [confirmed(answers, group), fleets(answers, group), matters(answers, group)].concat()
}

fn confirmed(answers: &Answers, group: &Group) -> String {
    let those: Vec<_> =
        answers.confirmations.iter().filter(|c| same(group, &c.workload, &c.slo)).collect();
    let Some(first) = those.first() else { return String::new() };
    let columns =
        [text("how sure"), number("req/s"), number("+-"), number("best on").expendable(1)];
    let rows: Vec<Vec<String>> = those
        .iter()
        .map(|c| {
            vec![
                c.configuration.clone(),
                figure(c.requests_per_s),
                format!("{:.1} %", c.plus_minus_percent),
                format!("{} of {} seeds", c.best_on, c.seeds),
            ]
        })
        .collect();
    let narrow = match those.iter().all(|c| c.narrow_enough) {
        true => "",
        false => "; wider than confirm.within_percent asks for, raise confirm.max_requests",
    };
    format!(
        "{}{} % confidence, {} seeds, {} requests a run{narrow}\n\n",
        render(&columns, &rows, window_width()),
        first.level_percent,
        first.seeds,
        first.requests
    )
}

fn fleets(answers: &Answers, group: &Group) -> String {
    let Some(answer) = answers.fleets.iter().find(|f| same(group, &f.workload, &f.slo)) else {
        return String::new();
    };
    let columns = [
        text("fleet, each replica"),
        number("replicas"),
        number("devices"),
        text("nodes").expendable(2),
        number("USD/h"),
        number("TTFT P90").expendable(3),
        number("ITL P99").expendable(3),
    ];
    let rows: Vec<Vec<String>> = answer
        .tried
        .iter()
        .take(5)
        .map(|f| {
            let whole = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let node = f.offer.as_ref().and_then(|o| o.node.clone());
            let at = f.at.as_ref();
            vec![
                f.configuration.clone(),
                whole(f.replicas),
                whole(f.devices),
                match (f.nodes, node) {
                    (Some(n), Some(node)) => format!("{n} x {node}"),
                    _ => "-".to_owned(),
                },
                or_dash(f.usd_per_hour),
                or_dash(at.and_then(|a| a.ttft_ms).map(|d| d.p90)),
                or_dash(at.and_then(|a| a.itl_ms).map(|d| d.p99)),
            ]
        })
        .collect();
    format!(
        "{}for {} requests/s, {} requests simulated; whole nodes are paid\n\n",
        render(&columns, &rows, window_width()),
        figure(answer.requests_per_s),
        answer.requests
    )
}

fn matters(answers: &Answers, group: &Group) -> String {
    // The largest effect of each setting.
    let mut settings: Vec<&crate::capacity::Effect> = Vec::new();
    for effect in answers.sensitivity.iter().filter(|e| same(group, &e.workload, &e.slo)) {
        let new = settings.iter().all(|s| s.setting != effect.setting);
        if new && effect.gain_percent.is_some() {
            settings.push(effect);
        }
    }
    settings.truncate(4);
    if settings.is_empty() {
        return String::new();
    }
    let columns = [
        text("what matters"),
        text("from"),
        text("to"),
        number("req/s").expendable(1),
        number("gain"),
    ];
    let rows: Vec<Vec<String>> = settings
        .iter()
        .map(|e| {
            vec![
                e.setting.clone(),
                e.from.clone(),
                e.to.clone(),
                or_dash(e.requests_per_s),
                e.gain_percent.map_or_else(|| "-".to_owned(), |g| format!("{g:+.1} %")),
            ]
        })
        .collect();
    format!("{}\n", render(&columns, &rows, window_width()))
}

/// How the answers move.
pub fn what_if(answers: &Answers) -> String {
    if answers.what_if.is_empty() {
        return String::new();
    }
    let several = answers.groups.len() > 1;
    let columns = [
        text("what if"),
        text("best"),
        number("req/s").expendable(2),
        number("replicas").expendable(3),
        number("USD/h"),
        number("USD/Mtok"),
    ];
    let rows: Vec<Vec<String>> = answers
        .what_if
        .iter()
        .map(|w| {
            let of = format!("{}, {} under {}", w.change, w.workload, w.slo);
            let change = if several { of } else { w.change.clone() };
            match &w.best {
                None => {
                    let rest = [const { String::new() }; 4];
                    [vec![change, "nothing keeps the objectives".to_owned()], rest.to_vec()]
                        .concat()
                }
                Some(b) => vec![
                    change,
                    b.configuration.clone(),
                    or_dash(b.requests_per_s),
                    b.replicas.to_string(),
                    or_dash(b.usd_per_hour),
                    or_dash(b.usd_per_million_output_tokens),
                ],
            }
        })
        .collect();
    format!("{}\n", render(&columns, &rows, window_width()))
}
