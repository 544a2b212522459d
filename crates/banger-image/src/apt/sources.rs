//! Which package sources to use, decided from what the host's apt uses.

use std::path::Path;

/// What `apt-get indextargets` is asked for, one line per index, fields separated by tabs.
pub(super) const TARGET_FORMAT: &str =
    "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)\t$(CODENAME)";

/// Components of the Debian archive.
const COMPONENTS: [&str; 4] = ["main", "contrib", "non-free", "non-free-firmware"];
/// Names by which a source may call a release when nothing else tells that it is Debian's.
const RELEASES: [&str; 12] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "unstable",
    "testing",
    "stable",
    "oldstable",
    "oldoldstable",
];

/// One package index that the host's apt knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uri: String,
    /// As the source names it: a codename or `stable`.
    pub(super) release: String,
    pub(super) component: String,
    /// Who publishes it; None if its lists are not on the host.
    pub(super) origin: Option<String>,
    /// The release's codename; None if its lists are not on the host.
    pub(super) codename: Option<String>,
}

/// A place to get packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Where the archive is. May hold a user and a password.
    pub(crate) uri: String,
    /// The suite: `bookworm`, `bookworm-security`.
    pub(crate) suite: String,
    /// Which of its components the host uses.
    pub(crate) components: Vec<String>,
}

/// Read what `apt-get indextargets` printed.
pub(super) fn parse_targets(text: &str) -> Vec<Target> {
    text.lines().filter_map(parse_target).collect()
}

fn parse_target(line: &str) -> Option<Target> {
    let mut fields = line.split('\t');
    let mut next = || {
        // apt leaves a field as it is in the format if it has no value for it.
        let field = fields.next()?.trim();
        (!field.is_empty() && !field.starts_with("$(")).then(|| field.to_owned())
    };
    Some(Target {
        uri: next()?,
        release: next()?,
        component: next()?,
        origin: next(),
        codename: next(),
    })
}

/// The sources of the Debian release `release` among `targets`. `read` gives the text of a file.
///
/// Third parties are left out, as are suites that are neither the release itself nor its updates or
/// its security updates. A host with another release has `release` put in its place: the archive
/// holds them all.
pub(super) fn plan_sources(
    targets: &[Target],
    release: &str,
    read: &dyn Fn(&Path) -> Option<String>,
) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for target in targets {
        let Some(uri) = usable_uri(&target.uri, read) else { continue };
        let Some(suffix) = suite_suffix(target) else { continue };
        if !COMPONENTS.contains(&target.component.as_str()) {
            continue;
        }
        let suite = format!("{release}{suffix}");
        let known = sources.iter_mut().find(|known| known.uri == uri && known.suite == suite);
        match known {
            Some(known) if known.components.contains(&target.component) => {}
            Some(known) => known.components.push(target.component.clone()),
            None => {
                let components = vec![target.component.clone()];
                sources.push(Source { uri, suite, components });
            }
        }
    }
    // Without the release itself the rest is of no use.
    if sources.iter().any(|source| source.suite == release) { sources } else { Vec::new() }
}

/// The suite of a target of Debian's without its release: nothing, `-updates` or `-security`; None
/// if it is another one or not Debian's.
fn suite_suffix(target: &Target) -> Option<&'static str> {
    let (base, suffix) = match target.release.split_once(['-', '/']) {
        None => (target.release.as_str(), ""),
        Some((base, "updates")) if target.release.contains('/') => (base, "-security"),
        Some((base, "updates")) => (base, "-updates"),
        Some((base, "security")) => (base, "-security"),
        Some(_) => return None,
    };
    match (&target.origin, &target.codename) {
        (Some(origin), Some(_)) => (origin == "Debian").then_some(suffix),
        // Its lists are not here, so it can only be judged by its looks; what it really is, the
        // archive's signature will tell.
        _ => {
            let path = target.uri.trim_end_matches('/');
            let looks = path.ends_with("/debian") || path.ends_with("/debian-security");
            (looks && RELEASES.contains(&base)).then_some(suffix)
        }
    }
}

/// The address in a form that works in a guest too; None for media and the host's own files.
fn usable_uri(uri: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<String> {
    if let Some(list) = uri.strip_prefix("mirror+file:") {
        // Cloud images name their mirrors in a file. The first one will do.
        let path = format!("/{}", list.trim_matches('/'));
        let mirrors = read(Path::new(&path))?;
        let first = mirrors.lines().map(str::trim).find(|line| line.contains("://"))?;
        return usable_uri(first.split_whitespace().next()?, read);
    }
    let scheme = uri.split(':').next()?;
    let is_remote =
        scheme.split('+').all(|part| ["http", "https", "mirror", "tor"].contains(&part));
    is_remote.then(|| format!("{}/", uri.trim_end_matches('/')))
}

/// The sources as apt's one-line format has them.
pub(crate) fn one_line(sources: &[Source], keyring: &Path) -> String {
    let line = |source: &Source| {
        let Source { uri, suite, components } = source;
        let components = components.join(" ");
        format!("deb [signed-by={}] {uri} {suite} {components}\n", keyring.display())
    };
    sources.iter().map(line).collect()
}

/// The sources as a guest gets them: as deb822 stanzas, without users and passwords.
pub(crate) fn deb822(sources: &[Source], keyring: &Path) -> String {
    let stanza = |source: &Source| {
        format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nSigned-By: {}\n",
            without_credentials(&source.uri),
            source.suite,
            source.components.join(" "),
            keyring.display(),
        )
    };
    sources.iter().map(stanza).collect::<Vec<_>>().join("\n")
}

/// An address without user and password.
fn without_credentials(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.to_owned() };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LISTS: &str = "$(ORIGIN)\t$(CODENAME)";

    fn plan(lines: &[&str]) -> Vec<String> {
        let read = |path: &Path| {
            (path == Path::new("/etc/apt/mirrors/debian.list")).then(|| {
                "# ours\nhttps://mirror.test/debian\tpriority:1\nhttp://b.test/debian\n".into()
            })
        };
        let sources = plan_sources(&parse_targets(&lines.join("\n")), "bookworm", &read);
        let show = |source: &Source| {
            format!("{} {} {}", source.uri, source.suite, source.components.join(","))
        };
        sources.iter().map(show).collect()
    }

    #[test]
    fn the_hosts_debian_sources_are_used_and_no_others() {
        let got = plan(&[
            "http://m.test/debian/\tbookworm\tmain\tDebian\tbookworm",
            "http://m.test/debian/\tbookworm\tcontrib\tDebian\tbookworm",
            "http://m.test/debian/\tbookworm\tmain\tDebian\tbookworm",
            "http://m.test/debian/\tbookworm-updates\tmain\tDebian\tbookworm-updates",
            "http://m.test/debian/\tbookworm-backports\tmain\tDebian Backports\tbookworm-backports",
            "http://m.test/debian-security/\tbookworm-security\tmain\tDebian\tbookworm-security",
            "https://third.test/apt\tbookworm\tmain\tThird\tbookworm",
            "https://third.test/debian\tbookworm\tstable\tDocker\tbookworm",
            "cdrom:[Debian 12]/\tbookworm\tmain\tDebian\tbookworm",
            "file:/srv/debian/\tbookworm\tmain\tDebian\tbookworm",
        ]);
        let want = [
            "http://m.test/debian/ bookworm main,contrib",
            "http://m.test/debian/ bookworm-updates main",
            "http://m.test/debian-security/ bookworm-security main",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn another_release_is_replaced() {
        let got = plan(&[
            "http://m.test/debian/\tstable\tmain\tDebian\ttrixie",
            "http://m.test/debian/\tstable-updates\tmain\tDebian\ttrixie-updates",
            "http://m.test/debian-security/\tstable-security\tmain\tDebian\ttrixie-security",
        ]);
        let want = [
            "http://m.test/debian/ bookworm main",
            "http://m.test/debian/ bookworm-updates main",
            "http://m.test/debian-security/ bookworm-security main",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn without_lists_a_source_is_judged_by_its_looks() {
        let got = plan(&[
            &format!("http://m.test/debian/\tbookworm\tmain\t{NO_LISTS}"),
            &format!("http://m.test/debian-security/\tbookworm-security\tmain\t{NO_LISTS}"),
            &format!("http://third.test/apt/\tbookworm\tmain\t{NO_LISTS}"),
            &format!("http://third.test/debian/\tnodistro\tmain\t{NO_LISTS}"),
        ]);
        let want = [
            "http://m.test/debian/ bookworm main",
            "http://m.test/debian-security/ bookworm-security main",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn mirror_lists_are_followed() {
        let got =
            plan(&["mirror+file:/etc/apt/mirrors/debian.list/\tbookworm\tmain\tDebian\tbookworm"]);
        assert_eq!(got, ["https://mirror.test/debian/ bookworm main"]);
    }

    #[test]
    fn security_alone_is_nothing() {
        let line = "http://m.test/debian-security/\tbookworm-security\tmain\tDebian\tx";
        assert_eq!(plan(&[line]), Vec::<String>::new());
        assert_eq!(plan(&["", "garbage", "a\tb"]), Vec::<String>::new());
    }

    #[test]
    fn guests_get_no_passwords() {
        let sources = [Source {
            uri: "https://me:se@cret@m.test:8080/debian/".to_owned(),
            suite: "bookworm".to_owned(),
            components: vec!["main".to_owned(), "contrib".to_owned()],
        }];
        let keyring = Path::new("/usr/share/keyrings/k.gpg");
        assert_eq!(
            deb822(&sources, keyring),
            "Types: deb\nURIs: https://m.test:8080/debian/\nSuites: bookworm\n\
             Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n"
        );
        assert_eq!(
            one_line(&sources, keyring),
            "deb [signed-by=/usr/share/keyrings/k.gpg] https://me:se@cret@m.test:8080/debian/ \
             bookworm main contrib\n"
        );
    }
}
