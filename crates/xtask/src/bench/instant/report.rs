//! The tables: what was measured, and the ratios that count.

use super::contender::{Outcome, Side};
use crate::bench::Row;
use crate::bench::figures::Machine;

/// With fewer runs the 95th of a hundred is the slowest one, and says nothing.
const RUNS_FOR_P95: usize = 20;

/// All tables, with the machine above.
pub(super) fn report(
    machine: &Machine,
    outcomes: &[Outcome],
    [crowd, copies]: [&[Row]; 2],
) -> String {
    let mut text = format!("{machine}\n\n");
    text.push_str("| a VM runs `true` and is gone | p50 | p95 | runs |\n|---|---|---|---|\n");
    outcomes.iter().for_each(|outcome| text.push_str(&line(outcome)));
    text.push_str("\n| ratio | measured | wanted |\n|---|---|---|\n");
    ratios(outcomes).iter().for_each(|row| text.push_str(&row.line()));
    text.push_str("\n| many at once | measured | wanted |\n|---|---|---|\n");
    crowd.iter().for_each(|row| text.push_str(&row.line()));
    text.push_str("\n| copies of a running VM | measured | wanted |\n|---|---|---|\n");
    copies.iter().for_each(|row| text.push_str(&row.line()));
    text
}

/// For people.
pub(super) fn seconds(time: f64) -> String {
    if time < 1.0 { format!("{time:.3} s") } else { format!("{time:.2} s") }
}

fn line(outcome: &Outcome) -> String {
    let Outcome { name, times, trouble, .. } = outcome;
    let Some(p50) = outcome.p50() else {
        let why = trouble.as_ref().map(ToString::to_string).unwrap_or_default();
        return format!("| {name} | not measured: {why} | | 0 |\n");
    };
    let p95 = outcome.seconds(95).filter(|_| times.len() >= RUNS_FOR_P95);
    let p95 = p95.map_or_else(|| "–".to_owned(), seconds);
    let trouble = trouble.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
    format!("| {name} | {} | {p95} | {}{trouble} |\n", seconds(p50), times.len())
}

fn ratios(outcomes: &[Outcome]) -> [Row; 5] {
    let of = |side| outcomes.iter().find(|outcome| outcome.side == side);
    let p50 = |side| of(side).and_then(Outcome::p50);
    let warm = p50(Side::Warm);
    let ratio = |over: Option<f64>, under: Option<f64>| match (over, under) {
        (Some(over), Some(under)) => format!("**{:.2} ×**", over / under),
        _ => "not measured".to_owned(),
    };
    let peers = outcomes.iter().filter(|outcome| outcome.side == Side::Peer);
    let peers = peers.filter_map(|peer| Some((peer.name, peer.p50()?)));
    let best = peers.min_by(|one, other| one.1.total_cmp(&other.1));
    let best_name = best.map_or("there is none", |(name, _)| name);
    [
        Row::new("banger, warm ÷ cold, p50", ratio(warm, p50(Side::Cold)), "≤ 0.15 ×"),
        Row::new(
            "banger, warm, p95 ÷ p50",
            ratio(of(Side::Warm).and_then(|outcome| outcome.seconds(95)), warm),
            "≤ 1.5 ×",
        ),
        Row::new(
            "banger, warm ÷ bare QEMU, restored, p50",
            ratio(warm, p50(Side::Floor)),
            "≤ 1.6 ×",
        ),
        Row::new("banger, from the pool ÷ warm, p50", ratio(p50(Side::Pool), warm), ""),
        Row::new(
            &format!("the quickest peer ({best_name}) ÷ banger, warm, p50"),
            ratio(best.map(|(_, time)| time), warm),
            "≥ 5 ×",
        ),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::instant::CONTENDERS;
    use crate::bench::instant::contender::Reason;

    /// Times for everybody but those who need KVM, and one failure.
    pub(in crate::bench::instant) fn example() -> Vec<Outcome> {
        let seconds = [0.25, 0.1, 2.5, 0.0, 1.5, 2.0, 7.0, 29.0, 0.0, 0.0];
        CONTENDERS
            .iter()
            .zip(seconds)
            .map(|(contender, time)| {
                let count = if contender.side == Side::Warm { 50 } else { 3 };
                let times = vec![Duration::from_secs_f64(time); if time > 0.0 { count } else { 0 }];
                let trouble = match (contender.name, time > 0.0) {
                    ("debvm", _) => Some(Reason::new("1 failed: not done in 180 s: <x> & y")),
                    (_, true) => None,
                    (_, false) => Some(Reason::new("needs KVM")),
                };
                Outcome { name: contender.name, side: contender.side, times, trouble }
            })
            .collect()
    }

    #[test]
    fn every_contender_has_a_line_with_times_or_a_reason() {
        let lines: Vec<String> = example().iter().map(line).collect();
        assert_eq!(lines[0], "| banger, warm | 0.250 s | 0.250 s | 50 |\n");
        assert_eq!(lines[1], "| banger, pool | 0.100 s | – | 3 |\n");
        assert_eq!(lines[2], "| banger, cold | 2.50 s | – | 3 |\n");
        assert_eq!(lines[3], "| bare QEMU, restored | not measured: needs KVM | | 0 |\n");
        assert_eq!(lines[7], "| debvm | 29.00 s | – | 3, 1 failed: not done in 180 s: <x> & y |\n");
        assert_eq!(lines.len(), CONTENDERS.len());
    }

    #[test]
    fn the_ratios_are_of_medians_and_the_floor_is_no_peer() {
        let mut outcomes = example();
        outcomes[3].times = vec![Duration::from_millis(100)];
        let measured = ratios(&outcomes).map(|row| row.measured);
        let wanted = ["**0.10 ×**", "**1.00 ×**", "**2.50 ×**", "**0.40 ×**", "**6.00 ×**"];
        assert_eq!(measured, wanted);
        assert!(ratios(&outcomes)[4].what.contains("bare QEMU boot, as banger does"));
        outcomes[3].times.clear();
        assert_eq!(ratios(&outcomes)[2].measured, "not measured");
        outcomes[0].times.clear();
        assert!(ratios(&outcomes).iter().all(|row| row.measured == "not measured"));
    }
}
