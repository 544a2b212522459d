//! The front page is true: its commands exist with the options it uses, and the short ones do what
//! it says.

use std::path::Path;

use banger_testkit::Host;

/// Lines of the front page that start with `$ `, without comments.
fn commands_of_the_readme() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(path).expect("the front page is there");
    text.lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .map(|line| line.split(" #").next().unwrap_or(line).trim().to_owned())
        .collect()
}

/// The words of every `banger …` in a command line, up to the guest's command.
fn banger_calls(line: &str) -> Vec<Vec<&str>> {
    line.split([';', '|', '&'])
        .map(|call| call.split(" -- ").next().unwrap_or(call).split_whitespace())
        .map(|words| words.skip_while(|word| *word != "banger").skip(1).collect::<Vec<_>>())
        .filter(|words| !words.is_empty() && words[0] != "--help")
        .collect()
}

#[test]
fn the_commands_of_the_readme_exist() {
    let host = Host::new();
    let mut seen = 0;
    for line in commands_of_the_readme() {
        for words in banger_calls(&line)
            .into_iter()
            .filter(|words| !line.starts_with("git ") && !words.is_empty())
        {
            let help = host.banger([words[0], "--help"]).run().assert_ok().stdout_text();
            for option in words[1..].iter().filter(|word| word.starts_with('-')) {
                let wanted = option.split('=').next().unwrap_or(option);
                assert!(help.contains(wanted), "{line}: `{}` has no {wanted}:\n{help}", words[0]);
            }
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} commands were found");
    host.finish();
}

/// The ten commands, in their order, as far as they need neither a terminal nor a project.
#[test]
fn the_tour_of_the_readme_works() {
    let host = Host::new();
    let archive =
        host.program(Path::new("/bin/tar"), ["c", "-C", "/etc", "passwd"]).run().assert_ok();
    let unpack = ["run", "--rm", "--", "sh", "-c", "tar x -C /tmp && cat /tmp/passwd"];
    let here = std::fs::read_to_string("/etc/passwd").expect("readable for all");
    host.banger(unpack).stdin(archive.stdout).run().assert_ok().assert_stdout(&here);
    let forever = "while date; do sleep 5; done";
    host.banger(["run", "-d", "--name", "web", "--", "sh", "-c", forever]).run().assert_ok();
    host.banger(["exec", "web", "--", "ps", "aux"]).run().assert_ok().assert_stdout_has(forever);
    host.banger(["shell", "web"]).stdin("hostname\n").run().assert_ok().assert_stdout_has("web");
    host.banger(["ls"]).run().assert_ok().assert_stdout_has("running");
    host.banger(["stop", "web"]).run().assert_ok();
    host.banger(["start", "web"]).run().assert_ok();
    host.banger(["rm", "-f", "web"]).run().assert_ok();
    host.finish();
}
