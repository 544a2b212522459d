//! What is shown of the reports of an operation.

use super::*;

fn stage(name: &str, message: &str) -> Progress {
    Progress::stage(name, message)
}

fn item(stage: &str, name: &str, done: u64, total: u64) -> Progress {
    Progress {
        item: Some(name.to_owned()),
        done: Some(done),
        total: Some(total),
        unit: Some(ProgressUnit::Bytes),
        ..Progress::stage(stage, "downloading")
    }
}

/// The lines as text: a bar is its numbers.
fn shown(board: &Board) -> String {
    let number = |part: Option<u64>| part.map_or("?".to_owned(), |part| part.to_string());
    let line = |line: Shown| {
        let indent = if line.is_item { "  " } else { "" };
        let count = match line.count {
            Count { done: None, total: None, .. } => String::new(),
            Count { done, total, .. } => format!(" [{}/{}]", number(done), number(total)),
        };
        format!("{indent}{}{count}\n", line.text)
    };
    board.lines().into_iter().map(line).collect()
}

fn after(reports: &[Progress]) -> (Board, Vec<News>) {
    let mut board = Board::default();
    let news = reports.iter().flat_map(|report| board.update(report)).collect();
    (board, news)
}

#[test]
fn a_stage_follows_a_stage() {
    let (mut board, news) = after(&[
        stage("a", "first"),
        Progress { done: Some(3), total: Some(9), ..stage("a", "first: part") },
        stage("b", "second"),
    ]);
    insta::assert_snapshot!(shown(&board), @"second");
    let began = |stage: &str, message: &str| News::Began {
        stage: stage.to_owned(),
        message: message.to_owned(),
    };
    let ended = |stage: &str, message: &str| News::Ended {
        stage: stage.to_owned(),
        message: message.to_owned(),
    };
    assert_eq!(news, [began("a", "first"), ended("a", "first"), began("b", "second")]);
    assert_eq!(board.finish(), [ended("b", "second")]);
    assert_eq!(shown(&board), "");
}

#[test]
fn things_of_a_stage_have_lines_until_they_are_done() {
    let (board, news) = after(&[
        stage("pull", "downloading"),
        item("pull", "aaaa", 10, 100),
        item("pull", "bbbb", 50, 50),
        item("pull", "cccc", 0, 10),
    ]);
    insta::assert_snapshot!(shown(&board), @"
    downloading (1 of 3 done) [60/160]
      aaaa [10/100]
      cccc [0/10]
    ");
    let count = Count { done: Some(50), total: Some(50), unit: Some(ProgressUnit::Bytes) };
    let done = News::ItemDone { stage: "pull".to_owned(), item: "bbbb".to_owned(), count };
    assert_eq!(news.last(), Some(&done));
}

#[test]
fn a_thing_is_done_once() {
    let (mut board, _) = after(&[item("pull", "aaaa", 5, 5)]);
    assert_eq!(board.update(&item("pull", "aaaa", 5, 5)), []);
    // A download that was wrong begins anew; its line is there.
    assert_eq!(board.update(&item("pull", "aaaa", 0, 5)), []);
    assert_eq!(board.update(&item("pull", "aaaa", 5, 5)), []);
    // Nor is it told again when its stage was closed meanwhile, as another began.
    board.update(&stage("write", "writing"));
    assert_eq!(board.update(&item("pull", "aaaa", 5, 5)), [ended("write", "writing")]);
    assert_eq!(board.update(&item("pull", "bbbb", 5, 5)).len(), 1, "another thing is told");
}

fn ended(stage: &str, message: &str) -> News {
    News::Ended { stage: stage.to_owned(), message: message.to_owned() }
}

#[test]
fn of_many_things_some_are_shown() {
    let reports: Vec<Progress> =
        (0..60).map(|number| item("pull", &format!("layer{number}"), number.min(2), 2)).collect();
    let (board, _) = after(&reports[..]);
    insta::assert_snapshot!(shown(&board), @"
    downloading (58 of 60 done) [117/120]
      layer0 [0/2]
      layer1 [1/2]
    ");
    let reports: Vec<Progress> =
        (0..60).map(|number| item("pull", &format!("layer{number}"), 1, 2)).collect();
    let (board, _) = after(&reports);
    insta::assert_snapshot!(shown(&board), @"
    downloading (0 of 60 done) [60/120]
      layer0 [1/2]
      layer1 [1/2]
      layer2 [1/2]
      layer3 [1/2]
      layer4 [1/2]
      layer5 [1/2]
      and 54 more
    ");
}

#[test]
fn the_stages_own_count_comes_first() {
    let total = Progress { done: Some(7), total: Some(70), ..stage("pull", "downloading") };
    let (board, _) = after(&[total, item("pull", "aaaa", 1, 2), item("pull", "bbbb", 1, 2)]);
    insta::assert_snapshot!(shown(&board), @"
    downloading (0 of 2 done) [7/70]
      aaaa [1/2]
      bbbb [1/2]
    ");
}

#[test]
fn stages_that_take_turns_are_shown_together_and_told_once() {
    let (board, news) = after(&[
        item("pull", "aaaa", 1, 2),
        stage("write", "writing"),
        item("pull", "aaaa", 2, 2),
        stage("write", "writing"),
        item("pull", "bbbb", 1, 2),
        stage("write", "writing"),
    ]);
    insta::assert_snapshot!(shown(&board), @"
    downloading (1 of 2 done) [3/4]
      bbbb [1/2]
    writing
    ");
    let began = news.iter().filter(|news| matches!(news, News::Began { .. })).count();
    let ended = news.iter().filter(|news| matches!(news, News::Ended { .. })).count();
    assert_eq!((began, ended), (2, 0));
}

#[test]
fn what_is_done_to_a_thing_is_said_where_it_differs() {
    let mut report = item("write", "aaaa", 1, 2);
    let (mut board, _) = after(&[stage("write", "making the disk"), report.clone()]);
    "unpacking\u{1b}[2J".clone_into(&mut report.message);
    board.update(&report);
    insta::assert_snapshot!(shown(&board), @"
    making the disk [1/2]
      aaaa unpacking[2J [1/2]
    ");
}
