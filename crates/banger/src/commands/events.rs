//! `banger events`.

use std::time::Duration;

use banger_api::event::{Event, EventType};
use banger_core::{duration, time_of_day};
use banger_host::clock;
use banger_host::http::Lines;
use clap::Args;

use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger events                              What happens from now on, until Ctrl-C
  banger events --since 1h --no-follow       What happened in the last hour
  banger events --filter vm=web --filter type=vm.stopped --filter type=vm.failed
  banger events --format json                One object per line

The daemon remembers the last few thousand events since it started.
";

/// Arguments of `banger events`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Events {
    /// Begin with what happened so long ago
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Duration>,
    /// End after what has happened so far
    #[arg(long, requires = "since")]
    no_follow: bool,
    /// Only vm=NAME or type=KIND, for example type=vm or type=vm.stopped (may be repeated)
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

impl Events {
    /// Prints events as they come. A daemon that is restarted meanwhile is asked again.
    pub async fn run(self, ui: &Ui) -> Result<u8, Failure> {
        let mut interrupts = Interrupts::listen();
        let mut since_ms = self.since.map(|since| {
            clock::now_ms().saturating_sub(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        });
        loop {
            let client = Client::ready(ui).await?;
            let mut lines = Lines::of(client.open(&self.path(since_ms)).await?);
            loop {
                let line = tokio::select! {
                    biased;
                    signal = interrupts.next() => return Err(Failure::signal(signal)),
                    line = lines.next_event() => line,
                };
                // A daemon that dies breaks the stream off; one that is stopped ends it.
                let Ok(Some(text)) = line else { break };
                show(&read(&text)?, ui)?;
            }
            if self.no_follow {
                return Ok(0);
            }
            since_ms = Some(clock::now_ms());
            ui.warning("the daemon went away; events until it is back are not shown");
        }
    }

    fn path(&self, since_ms: Option<u64>) -> String {
        let since = since_ms.map(|since_ms| format!("&since_ms={since_ms}")).unwrap_or_default();
        let filter = escape_list(&self.filters);
        format!("/v1/events?follow={}{since}{filter}", !self.no_follow)
    }
}

fn escape_list(filters: &[String]) -> String {
    if filters.is_empty() {
        return String::new();
    }
    format!("&filter={}", escape(&filters.join(",")))
}

fn parse_since(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

fn read(text: &str) -> Result<Event, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::internal("the daemon's event cannot be understood", &error))
}

fn show(event: &Event, ui: &Ui) -> Result<(), Failure> {
    if ui.is_json() {
        return ui.json(event);
    }
    ui.line(&line(event))
}

/// An event for people: `2026-11-21 14:44:18Z  vm.stopped  web  the command exited with 3`.
fn line(event: &Event) -> String {
    let time = time_of_day::format_utc(event.time_ms);
    let about = match (event.kind, event.missed) {
        (EventType::EventsMissed, Some(missed)) => format!("{missed} events came too fast"),
        _ => event.name.clone().unwrap_or_default(),
    };
    let reason = event.reason.as_deref().unwrap_or_default();
    let again = match event.next_start_ms {
        Some(_) => "; it will be started again",
        None => "",
    };
    let text = format!("{time}  {:<17} {about}  {reason}{again}", event.kind);
    text.trim_end().chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        read(json).expect("an event")
    }

    #[test]
    fn a_line_says_when_what_and_why() {
        let lines = [
            r#"{"number":1,"time_ms":1795272258000,"type":"vm.running","name":"web","id":"0"}"#,
            r#"{"number":2,"time_ms":1795272259999,"type":"vm.failed","name":"web","id":"0",
                "cause":"guest_panic","reason":"guest kernel panic: x","next_start_ms":5}"#,
            r#"{"number":9,"time_ms":1795272260000,"type":"events.missed","missed":6}"#,
            r#"{"number":10,"time_ms":0,"type":"daemon.started"}"#,
        ]
        .map(|json| line(&event(json)))
        .join("\n");
        insta::assert_snapshot!(lines, @r"
        2026-11-21 14:44:18Z  vm.running        web
        2026-11-21 14:44:19Z  vm.failed         web  guest kernel panic: x; it will be started again
        2026-11-21 14:44:20Z  events.missed     6 events came too fast
        1970-01-01 00:00:00Z  daemon.started
        ");
    }

    #[test]
    fn filters_are_escaped_and_joined() {
        let events = Events {
            since: None,
            no_follow: false,
            filters: vec!["vm=web".to_owned(), "type=vm".to_owned()],
        };
        assert_eq!(events.path(None), "/v1/events?follow=true&filter=vm%3Dweb%2Ctype%3Dvm");
        assert_eq!(
            Events { filters: Vec::new(), no_follow: true, ..events }.path(Some(5)),
            "/v1/events?follow=false&since_ms=5"
        );
    }
}
