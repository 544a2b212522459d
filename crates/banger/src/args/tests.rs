//! Command lines as people type them, and the help that they read.

use clap::{CommandFactory, Parser};

use super::*;

/// What is understood, in debug form; or clap's complaint.
fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn complaint(line: &str) -> String {
    let error = parse(line).expect_err("it makes no sense");
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn these_lines_are_understood() {
    let lines = [
        "banger run",
        "banger run --rm -- make test",
        "banger run debian-bookworm ls -la /",
        "banger run -it --rm debian-bookworm",
        "banger run -d --name web -e A=b -e TOKEN -w /srv -u app:app -c 4 -m 2G --disk 20G x",
        "banger run --timeout 1h30m --label a=b --label c --kernel k --engine qemu --net host-access",
        "banger run --image debian-bookworm -- true",
        "banger vm run --rm -- true",
        "banger run -q --no-progress -- true",
        "banger --format json run -- true",
        "banger create --name web debian-bookworm -- ./serve --port 80",
        "banger start a b",
        "banger stop --grace 30s a",
        "banger stop --time 30 a",
        "banger restart a",
        "banger kill a",
        "banger pause a b",
        "banger resume a b",
        "banger vm pause a",
        "banger fork a",
        "banger vm fork a -n 3 --name b --keep-env",
        "banger vm resume a",
        "banger rm -f a b",
        "banger ls -q --filter state=running --filter label=a=b",
        "banger ls --all",
        "banger ps",
        "banger vm ls --format json",
        "banger show a",
        "banger set web -c 4 -m 2G --disk 20G --work-disk 5G --label a=b --label c- --restart always",
        "banger vm set a b --ttl 2h",
        "banger set a --image b -y",
        "banger set a --ttl none --work-disk none --yes",
        "banger run --work-disk 5G",
        "banger exec -it web bash",
        "banger exec web -- ls -l",
        "banger exec -e A=b -w / -u root --timeout 5 -T web ls -l",
        "banger shell web",
        "banger logs -f --tail 10 --console web",
        "banger wait a b",
        "banger prune --dry-run",
        "banger prune -y",
    ];
    are_understood(&lines);
}

#[test]
fn these_lines_about_images_and_the_rest_are_understood() {
    let lines = [
        "banger snapshot create web",
        "banger snapshot create web clean",
        "banger vm snapshot ls",
        "banger snapshot ls web -q",
        "banger snapshot show web clean --format json",
        "banger snapshot restore web clean",
        "banger snapshot rm -f web clean auto-1",
        "banger image ls",
        "banger run --pull never --init system --stop-signal SIGINT --registry-config r.toml a:1",
        "banger run --entrypoint /bin/sh localhost:5000/team/app@sha256:aa -c ls",
        "banger run --entrypoint= alpine",
        "banger create --pull always --init agent --entrypoint python alpine -- -u x.py",
        "banger image pull --refresh debian-bookworm",
        "banger image pull --verify-key k.pub --registry-config auth.json docker.io/library/x:1",
        "banger image register rootfs.tar --name mine --kernel k --init system",
        "banger image register -",
        "banger image import",
        "banger image build .",
        "banger image build -t web --file - --build-arg A=b --build-arg C --target s --no-cache .",
        "banger image build --tag web --kernel k --init system src",
        "banger image promote web web-base",
        "banger image push web localhost:5000/web:1 --registry-config auth.json",
        "banger image show a b",
        "banger image rm a",
        "banger image rm -f a b",
        "banger image prune --all --dry-run",
        "banger image prune -ay",
        "banger image catalog",
        "banger kernel ls -q",
        "banger kernel pull debian-cloud",
        "banger kernel import bzImage --name k --modules lib/modules/6.1 --config .config",
        "banger kernel rm -f k",
        "banger daemon status",
        "banger daemon logs -f -n 5",
        "banger doctor --format json",
        "banger system df",
        "banger system reset --dry-run --yes",
        "banger completion zsh",
        "banger version",
    ];
    are_understood(&lines);
}

fn are_understood(lines: &[&str]) {
    for line in lines {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn these_lines_make_no_sense() {
    let cases = [
        ("banger lss", "error: unrecognized subcommand 'lss'"),
        (
            "banger run --cpus 0",
            "error: invalid value '0' for '--cpus <N>': 0 is not in 1..=4294967295",
        ),
        (
            "banger run --memory 1X",
            "error: invalid value '1X' for '--memory <SIZE>': unknown unit \"X\" (use K, M, G or T)",
        ),
        (
            "banger run --disk 8",
            "error: invalid value '8' for '--disk <SIZE>': the size needs a unit: 8M or 8G",
        ),
        (
            "banger run --name My_VM",
            "error: invalid value 'My_VM' for '--name <NAME>': a name has only lower-case letters, \
             digits and hyphens, not 'M' (try my-vm)",
        ),
        (
            "banger run --timeout 0",
            "error: invalid value '0' for '--timeout <TIME>': leave it out for no limit",
        ),
        (
            "banger run --stop-signal 99",
            "error: invalid value '99' for '--stop-signal <SIGNAL>': expected a name such as \
             SIGINT, or a number",
        ),
        (
            "banger run --entrypoint [1] x",
            "error: invalid value '[1]' for '--entrypoint <PROGRAM>': not a JSON array of words: \
             invalid type: integer `1`, expected a string at line 1 column 2",
        ),
        ("banger run --pull sometimes", "error: invalid value 'sometimes' for '--pull <WHEN>'"),
        ("banger image build", "error: the following required arguments were not provided:"),
        (
            "banger run -e =x",
            "error: invalid value '=x' for '--env <KEY[=VALUE]>': expected KEY or KEY=VALUE",
        ),
        ("banger run --nmae x", "error: unexpected argument '--nmae' found"),
        ("banger start", "error: the following required arguments were not provided:"),
        ("banger exec web", "error: the following required arguments were not provided:"),
    ];
    for (line, want) in cases {
        assert_eq!(complaint(line), want, "{line}");
    }
}

#[test]
fn words_after_the_image_are_the_guests() {
    let words = |line: &str| match parse(line).expect("it makes sense").command {
        Command::Everyday(VmCommand::Run(run)) => run.words,
        other => panic!("{other:?}"),
    };
    assert_eq!(words("banger run --rm img ls --rm -q"), ["img", "ls", "--rm", "-q"]);
    assert_eq!(words("banger run --rm img -- ls -q"), ["img", "--", "ls", "-q"]);
    assert_eq!(words("banger run --rm -- ls -q"), ["ls", "-q"]);
    assert_eq!(words("banger run -- -x"), ["-x"]);
}

#[test]
fn the_first_page_names_every_command() {
    let command = Cli::command();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = format!("{:<12}", sub.get_name());
        assert!(COMMANDS.contains(&name), "{} is not on the first page", sub.get_name());
    }
}

/// What `--help` shows on a terminal of a hundred columns.
fn help(words: &[&str]) -> String {
    let line = ["banger"].iter().chain(words).chain(&["--help"]);
    let parsed = Cli::command().term_width(100).try_get_matches_from(line);
    parsed.expect_err("help is an error to clap").to_string()
}

/// The words of every command, with those below it.
fn all_commands(command: &clap::Command, above: &[String]) -> Vec<Vec<String>> {
    let mut found = vec![above.to_vec()];
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let words = [above, &[sub.get_name().to_owned()]].concat();
        found.extend(all_commands(sub, &words));
    }
    found
}

#[test]
fn help_fits_a_screen() {
    for words in all_commands(&Cli::command(), &[]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let text = help(&words);
        let lines = text.lines().count();
        assert!(lines <= 50, "the help of {words:?} has {lines} lines");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= 100, "the help of {words:?} has {widest} columns:\n{text}");
    }
}

#[test]
fn the_first_page() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn the_page_of_run() {
    insta::assert_snapshot!(help(&["run"]));
}

#[test]
fn the_page_of_exec() {
    insta::assert_snapshot!(help(&["exec"]));
}

#[test]
fn the_page_of_image() {
    insta::assert_snapshot!(help(&["image"]));
}

#[test]
fn the_pages_of_what_makes_images() {
    let verbs = ["pull", "register", "build", "promote", "push", "prune"];
    let pages = verbs.map(|verb| help(&["image", verb]));
    insta::assert_snapshot!(pages.join("\n----\n"));
}

#[test]
fn the_page_of_kernel_import() {
    insta::assert_snapshot!(help(&["kernel", "import"]));
}
