//! How a registry says what it wants: the header `WWW-Authenticate`.

/// One way to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with every request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// URL of the service.
        realm: String,
        /// The name by which the service knows the registry.
        service: Option<String>,
    },
}

/// The best way that these headers offer and that we know: a token, else a password.
pub(super) fn best<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, parameters) in headers.into_iter().flat_map(parse) {
        let parameter =
            |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone());
        match scheme.as_str() {
            "bearer" => {
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            }
            "basic" => basic = Some(Challenge::Basic),
            _ => {}
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// The challenges of one header: schemes in lower case, with their parameters.
fn parse(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            // The end, or something that is no challenge.
            return found;
        }
        let (word, after) = rest.split_at(end);
        match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let Some((value, after)) = parse_value(value.trim_start()) else {
                    return found;
                };
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            None => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// A value, in quotes or not, and what stands after it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        let service = service.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service })
    }

    #[test]
    fn challenges_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        let cases: [(&[&str], Option<Challenge>); 11] = [
            (&[hub], bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            (&[r#"Basic realm="a, b=c""#], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (
                &[r#"Basic realm="x", Bearer realm="https://t" , service=s"#],
                bearer("https://t", Some("s")),
            ),
            (&["Basic realm=x", "BEARER REALM=https://t"], bearer("https://t", None)),
            (&[r#"Bearer realm="https://t/\"q\"""#], bearer("https://t/\"q\"", None)),
            (&["Bearer service=x"], None),
            (&[r#"Bearer realm="unended"#], None),
            (&["Negotiate", "Digest nonce=1"], None),
            (&["", ",,", "=", "\""], None),
            (&[], None),
        ];
        for (headers, want) in cases {
            assert_eq!(best(headers.iter().copied()), want, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text: String, start in "(Bearer |Basic )?") {
            let _ = best([&*format!("{start}{text}")]);
        }
    }
}
