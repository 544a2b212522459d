//! The picture: a bar for each contender, as long as its median.

use super::contender::{Outcome, Side};
use super::report::seconds;

const WIDTH: f64 = 760.0;
/// Names end here, bars begin.
const NAMES: f64 = 290.0;
/// Room for the seconds after the longest bar.
const FIGURES: f64 = 80.0;
const MARGIN: f64 = 10.0;
const HEAD: f64 = 44.0;
const LINE: f64 = 30.0;
const BAR: f64 = 16.0;
/// Reasons are cut here: a picture has no second line, and fonts differ in width.
const REASON_CHARS: usize = 58;

/// Words; these colours are as far from white as from the darkest grey that pages have.
const INK: &str = "#767a80";
const OURS: &str = "#0f84d8";
const THEIRS: &str = "#858a90";
const FLOOR: &str = "#b36b00";

/// Draws the medians. Lengths are in proportion: no logarithm makes the slow ones look quicker.
pub(super) fn draw(outcomes: &[Outcome]) -> String {
    let height = HEAD + LINE * outcomes.len() as f64 + MARGIN;
    let longest = outcomes.iter().filter_map(Outcome::p50).fold(0.0, f64::max);
    let scale = (WIDTH - NAMES - FIGURES) / longest.max(f64::MIN_POSITIVE);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"14\">\n\
         <title>Seconds until a VM has run true and is gone</title>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-weight=\"bold\" fill=\"{INK}\">Seconds until a VM has \
         run “true” and is gone (median; less is better)</text>\n"
    );
    for (place, outcome) in outcomes.iter().enumerate() {
        text.push_str(&bar(outcome, HEAD + LINE * place as f64, scale));
    }
    text.push_str("</svg>\n");
    text
}

fn bar(outcome: &Outcome, top: f64, scale: f64) -> String {
    let (name, base) = (escaped(outcome.name), top + BAR - 3.0);
    let (colour, weight) = match outcome.side {
        Side::Warm => (OURS, "bold"),
        Side::Cold | Side::Pool => (OURS, "normal"),
        Side::Floor => (FLOOR, "normal"),
        Side::Peer => (THEIRS, "normal"),
    };
    let word = |x: f64, anchor: &str, text: &str| {
        format!(
            "<text x=\"{x:.1}\" y=\"{base:.1}\" text-anchor=\"{anchor}\" fill=\"{INK}\" \
             font-weight=\"{weight}\">{text}</text>\n"
        )
    };
    let name = word(NAMES - MARGIN, "end", &name);
    let Some(time) = outcome.p50() else {
        let why = outcome.trouble.as_ref().map(ToString::to_string).unwrap_or_default();
        let why = shortened(&format!("not measured: {why}"));
        return name + &word(NAMES, "start", &escaped(&why));
    };
    // Even the shortest is seen.
    let length = (time * scale).max(2.0);
    let rectangle = format!(
        "<rect x=\"{NAMES:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR:.1}\" rx=\"2\" \
         fill=\"{colour}\"/>\n"
    );
    [name, rectangle, word(NAMES + length + 6.0, "start", &seconds(time))].concat()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::instant::report::tests::example;

    /// Every element that is opened is closed, in order, and every `&` begins an entity.
    fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        for tag in text.split('<').skip(1) {
            let (tag, words) = tag.split_once('>').expect("a tag ends");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            assert!(!words.contains('>'), "{words}");
            let name = tag.trim_matches('/').split_whitespace().next().expect("a tag has a name");
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name)),
                (_, true) => {}
                (false, false) => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        let entities = ["amp;", "lt;", "gt;", "quot;"];
        let is_entity = |rest: &str| entities.iter().any(|entity| rest.starts_with(entity));
        assert!(text.split('&').skip(1).all(is_entity), "{text}");
    }

    #[test]
    fn the_picture_is_well_formed_and_has_every_name() {
        let mut outcomes = example();
        outcomes[7].times.clear();
        let text = draw(&outcomes);
        assert_well_formed(&text);
        for outcome in &outcomes {
            assert!(text.contains(&format!(">{}</text>", outcome.name)), "{}", outcome.name);
            // The widest of the usual fonts, at this size.
            let width = outcome.name.chars().count() as f64 * 8.5;
            assert!(width < NAMES - MARGIN, "{} is cut off", outcome.name);
        }
        assert!(text.contains(">0.250 s</text>"), "{text}");
        assert!(text.contains("not measured: 1 failed: not done in 180 s: &lt;x&gt; &amp; y"));
    }

    #[test]
    fn lengths_are_in_proportion() {
        let outcomes = example();
        let text = draw(&outcomes);
        let lengths: Vec<f64> = text
            .split("<rect ")
            .skip(1)
            .map(|rect| rect.split("width=\"").nth(1).unwrap().split('"').next().unwrap())
            .map(|length| length.parse().unwrap())
            .collect();
        assert_eq!(lengths.len(), 7);
        let longest = WIDTH - NAMES - FIGURES;
        assert!((lengths[6] - longest).abs() < 0.1, "{lengths:?}");
        assert!((lengths[2] / longest - 2.5 / 29.0).abs() < 0.001, "{lengths:?}");
        assert!(draw(&[]).ends_with("</svg>\n"));
    }

    /// As WCAG has it: of the relative luminance of a colour.
    fn luminance(colour: &str) -> f64 {
        let part = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    #[test]
    fn words_and_bars_are_seen_on_white_and_on_dark_pages() {
        let contrast = |one: f64, other: f64| (one.max(other) + 0.05) / (one.min(other) + 0.05);
        for page in ["#ffffff", "#0d1117"] {
            assert!(contrast(luminance(INK), luminance(page)) > 4.0, "{page}");
            for bar in [OURS, THEIRS, FLOOR] {
                assert!(contrast(luminance(bar), luminance(page)) > 3.0, "{bar} on {page}");
            }
        }
    }
}
