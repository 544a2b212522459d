//! What exactly to run: everything that can be decided before there is a process.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;

use banger_api::exec::ExecRequest;
use banger_api::{ErrorCode, Problem};

use super::account::{Account, Accounts};
use super::failure;
use crate::agent::Settings;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal of unknown kind surely is.
const DEFAULT_TERM: &str = "xterm";

/// A command, ready to become a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Command {
    /// The files to try in turn, as `execvp` would.
    pub programs: Vec<CString>,
    /// The arguments, the program's name first.
    pub argv: Vec<CString>,
    /// `NAME=value` each.
    pub env: Vec<CString>,
    /// Where it runs.
    pub workdir: Workdir,
    /// Who it runs as; None keeps this process's own identity.
    pub credentials: Option<Credentials>,
    /// The program as the client named it, for messages.
    pub program_name: String,
    /// The command's `PATH`, for messages.
    pub path: String,
    /// The user as the client named it, for messages.
    pub user: String,
}

/// A working directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Workdir {
    /// Absolute path.
    pub path: CString,
    /// Somebody asked for it; otherwise `/` will do as well.
    pub required: bool,
}

/// The numbers of a process's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// Decides what to run for a request.
///
/// # Errors
/// The problem to answer with, if it cannot be decided.
pub fn plan(
    request: &ExecRequest,
    settings: &Settings,
    accounts: &Accounts,
) -> Result<Command, Problem> {
    let user = request.user.as_ref().or(settings.user.as_ref()).map_or("", String::as_str);
    let user = if user.is_empty() { "root" } else { user };
    let account = accounts.resolve(user).map_err(|error| failure::no_account(&error, accounts))?;
    let env = environment(request, settings, &account);
    let argv = match request.argv.is_empty() {
        true => login_shell(&account, Path::exists)?,
        false => Argv { program: request.argv[0].clone(), argv: request.argv.clone() },
    };
    let path = env.get("PATH").cloned().unwrap_or_default();
    Ok(Command {
        programs: c_strings(candidates(&argv.program, &path))?,
        argv: c_strings(argv.argv)?,
        workdir: workdir(request, settings, &account)?,
        env: c_strings(variables(&env)?)?,
        credentials: credentials(account),
        program_name: argv.program,
        path,
        user: user.to_owned(),
    })
}

/// A program of the agent's own choice, as root, in `/`.
///
/// # Errors
/// Of texts with NUL bytes.
pub fn plain(argv: &[&str]) -> Result<Command, Problem> {
    let words = argv.iter().map(|&word| word.to_owned()).collect();
    let env = ["HOME=/root".to_owned(), format!("PATH={DEFAULT_PATH}")];
    Ok(Command {
        programs: c_strings(candidates(argv.first().copied().unwrap_or_default(), DEFAULT_PATH))?,
        argv: c_strings(words)?,
        env: c_strings(env.into())?,
        workdir: Workdir { path: c"/".to_owned(), required: true },
        credentials: None,
        program_name: argv.first().copied().unwrap_or_default().to_owned(),
        path: DEFAULT_PATH.to_owned(),
        user: "root".to_owned(),
    })
}

/// A program and its arguments, which begin with its name.
#[derive(Debug, PartialEq, Eq)]
struct Argv {
    program: String,
    argv: Vec<String>,
}

/// The user's shell, told by its name that it is a login shell.
fn login_shell(account: &Account, exists: impl Fn(&Path) -> bool) -> Result<Argv, Problem> {
    const LAST_RESORT: &str = "/bin/sh";
    // What services have in place of a shell, which only says no or nothing at all.
    let is_shell = |shell: &str| !shell.ends_with("/nologin") && !shell.ends_with("/false");
    let shell = [account.shell.as_str(), LAST_RESORT]
        .into_iter()
        .find(|shell| is_shell(shell) && exists(Path::new(shell)))
        .ok_or_else(|| {
            Problem::new(ErrorCode::ExecNotFound, "the image has no shell")
                .cause(match account.shell.as_str() {
                    shell if is_shell(shell) && shell != LAST_RESORT => {
                        format!("there is neither {shell} nor {LAST_RESORT}")
                    }
                    _ => format!("there is no {LAST_RESORT}"),
                })
                .hint("give a command: banger run IMAGE -- CMD")
        })?;
    let name = shell.rsplit('/').next().unwrap_or(shell);
    Ok(Argv { program: shell.to_owned(), argv: vec![format!("-{name}")] })
}

/// The agent's defaults, then what the VM was configured with, then the request's.
fn environment(
    request: &ExecRequest,
    settings: &Settings,
    account: &Account,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: &str| env.insert(name.to_owned(), value.to_owned());
    set("PATH", DEFAULT_PATH);
    set("HOME", &account.home);
    set("SHELL", &account.shell);
    if let Some(name) = &account.name {
        set("USER", name);
        set("LOGNAME", name);
    }
    if request.tty.is_some() {
        set("TERM", DEFAULT_TERM);
    }
    env.extend(settings.env.clone());
    env.extend(request.env.clone());
    env
}

fn variables(env: &BTreeMap<String, String>) -> Result<Vec<String>, Problem> {
    env.iter()
        .map(|(name, value)| match name.is_empty() || name.contains('=') {
            true => Err(invalid(format!("the environment variable {name:?} cannot be set"))),
            false => Ok(format!("{name}={value}")),
        })
        .collect()
}

/// Where `execvp` would look for a program. An empty entry of `PATH` is the working directory.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|dir| match dir.trim_end_matches('/') {
            "" if dir.is_empty() => format!("./{program}"),
            dir => format!("{dir}/{program}"),
        })
        .collect()
}

fn workdir(
    request: &ExecRequest,
    settings: &Settings,
    account: &Account,
) -> Result<Workdir, Problem> {
    let home = Path::new(&account.home);
    let of_vm = settings.workdir.as_ref().map_or(home.to_path_buf(), |dir| home.join(dir));
    let path = request.workdir.as_ref().map_or(of_vm.clone(), |dir| of_vm.join(dir));
    let required = request.workdir.is_some() || settings.workdir.is_some();
    let path = path.to_string_lossy().into_owned();
    Ok(Workdir { path: c_string(path)?, required })
}

/// An ordinary user's agent, as in tests, can only run things as itself.
fn credentials(account: Account) -> Option<Credentials> {
    let Account { uid, gid, groups, .. } = account;
    let may_change = cfg!(not(test)) || nix::unistd::geteuid().is_root();
    may_change.then_some(Credentials { uid, gid, groups })
}

fn c_strings(texts: Vec<String>) -> Result<Vec<CString>, Problem> {
    texts.into_iter().map(c_string).collect()
}

fn c_string(text: String) -> Result<CString, Problem> {
    CString::new(text).map_err(|_| invalid("a text contains a NUL byte".to_owned()))
}

fn invalid(reason: String) -> Problem {
    Problem::new(ErrorCode::InvalidArgument, "The command cannot be run").cause(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::exec::WindowSize;

    fn accounts() -> Accounts {
        let passwd = "root:x:0:0::/root:/bin/bash\ndev:x:1000:1000::/home/dev:/bin/zsh\n";
        Accounts { passwd: passwd.to_owned(), group: String::new() }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|text| text.to_str().expect("UTF-8")).collect()
    }

    #[test]
    fn the_environment_is_layered() {
        let request = ExecRequest {
            argv: vec!["env".to_owned()],
            env: map(&[("B", "request"), ("C", "request")]),
            user: Some("dev".to_owned()),
            tty: Some(WindowSize { rows: 1, cols: 1 }),
            ..ExecRequest::default()
        };
        let settings = Settings {
            env: map(&[("A", "vm"), ("B", "vm"), ("PATH", "/opt/bin:")]),
            ..Settings::default()
        };
        let command = plan(&request, &settings, &accounts()).expect("a plan");
        let want = [
            "A=vm",
            "B=request",
            "C=request",
            "HOME=/home/dev",
            "LOGNAME=dev",
            "PATH=/opt/bin:",
            "SHELL=/bin/zsh",
            "TERM=xterm",
            "USER=dev",
        ];
        assert_eq!(texts(&command.env), want);
        assert_eq!(texts(&command.programs), ["/opt/bin/env", "./env"]);
    }

    #[test]
    fn programs_are_looked_up_like_a_shell_does() {
        let cases: [(&str, &str, &[&str]); 5] = [
            ("ls", "/bin:/usr/bin/", &["/bin/ls", "/usr/bin/ls"]),
            ("ls", "/:rel", &["/ls", "rel/ls"]),
            ("./ls", "/bin", &["./ls"]),
            ("/x/ls", "", &["/x/ls"]),
            ("", "/bin", &[]),
        ];
        for (program, path, want) in cases {
            assert_eq!(candidates(program, path), want, "{program} in {path}");
        }
    }

    #[test]
    fn no_arguments_mean_the_login_shell() {
        let account = accounts().resolve("dev").expect("there");
        let shell = login_shell(&account, |_| true).expect("a shell");
        assert_eq!(
            (shell.program.as_str(), &shell.argv[..]),
            ("/bin/zsh", &["-zsh".to_owned()][..])
        );
        let shell = login_shell(&account, |path| path == Path::new("/bin/sh")).expect("a shell");
        assert_eq!(shell.argv, ["-sh"]);
        let problem = login_shell(&account, |_| false).expect_err("none");
        assert_eq!(problem.code, ErrorCode::ExecNotFound);
        assert_eq!(problem.causes, ["there is neither /bin/zsh nor /bin/sh"]);
        for shell in ["/usr/sbin/nologin", "/bin/false"] {
            let service = Account { shell: shell.to_owned(), ..account.clone() };
            assert_eq!(login_shell(&service, |_| true).expect("a shell").argv, ["-sh"]);
        }
    }

    #[test]
    fn directories_are_the_requests_the_vms_or_home() {
        let cases = [
            (None, None, "/home/dev", false),
            (None, Some("/srv"), "/srv", true),
            (Some("/tmp"), Some("/srv"), "/tmp", true),
            (Some("sub"), Some("/srv"), "/srv/sub", true),
            (Some("sub"), None, "/home/dev/sub", true),
        ];
        let account = accounts().resolve("dev").expect("there");
        for (of_request, of_vm, want, required) in cases {
            let request =
                ExecRequest { workdir: of_request.map(str::to_owned), ..ExecRequest::default() };
            let settings = Settings { workdir: of_vm.map(str::to_owned), ..Settings::default() };
            let found = workdir(&request, &settings, &account).expect("a directory");
            assert_eq!((found.path.to_str(), found.required), (Ok(want), required));
        }
    }

    #[test]
    fn impossible_requests_are_refused() {
        let requests = [
            ExecRequest { argv: vec!["a\0b".to_owned()], ..ExecRequest::default() },
            ExecRequest {
                argv: vec!["a".to_owned()],
                env: map(&[("", "")]),
                ..ExecRequest::default()
            },
            ExecRequest {
                argv: vec!["a".to_owned()],
                env: map(&[("A=", "")]),
                ..ExecRequest::default()
            },
        ];
        for request in requests {
            let problem = plan(&request, &Settings::default(), &accounts()).expect_err("refused");
            assert_eq!(problem.code, ErrorCode::InvalidArgument);
        }
        let nobody = ExecRequest { user: Some("nobody".to_owned()), ..ExecRequest::default() };
        let problem = plan(&nobody, &Settings::default(), &accounts()).expect_err("refused");
        assert_eq!(problem.title, "the VM has no user \"nobody\"");
        assert_eq!(problem.causes, ["no line of its /etc/passwd has that name"]);
        let problem = plan(&nobody, &Settings::default(), &Accounts::default()).expect_err("none");
        assert_eq!(problem.causes, ["its image has no /etc/passwd"]);
    }
}
