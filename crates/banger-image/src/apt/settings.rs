//! The settings by which the host's apt reaches its mirrors: proxies, certificates, retries.

use banger_host::command::{Cancel, Tool};

use crate::error::PullError;

/// Prefixes of the settings that say how to reach a mirror.
const TRANSPORT: [&str; 7] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::tor::",
    "Acquire::tor+http::",
    "Acquire::tor+https::",
    "Acquire::Retries",
    "Acquire::ForceIPv",
];

/// The host's settings for reaching mirrors, in the syntax of apt's configuration files.
pub(crate) fn transport_settings(cancel: &Cancel) -> Result<String, PullError> {
    let tool =
        Tool::new("apt-config").args(["dump", "--no-empty", "--format", "%f\t%v%n", "Acquire"]);
    let dump = tool.run(cancel).map_err(PullError::tool("reading the apt configuration"))?;
    Ok(select_transport(&dump.text()))
}

fn select_transport(dump: &str) -> String {
    let mut lines = String::new();
    for line in dump.lines() {
        let Some((name, value)) = line.split_once('\t') else { continue };
        let is_plain = !value.contains('"');
        if TRANSPORT.iter().any(|prefix| name.starts_with(prefix)) && is_plain {
            lines.push_str(&setting(name, value));
        }
    }
    lines
}

/// One setting in the syntax of apt's configuration files.
fn setting(name: &str, value: &str) -> String {
    format!("{name} {};\n", quoted(value))
}

/// A value in the syntax of apt's configuration files, which cannot hold a double quote.
pub(crate) fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('"', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_and_certificates_are_taken_and_nothing_else() {
        let dump = "Acquire::http\t1\n\
                    Acquire::http::Proxy\thttp://127.0.0.1:3142\n\
                    Acquire::http::Proxy::m.test\tDIRECT\n\
                    Acquire::https::CaInfo\t/etc/ca;x.pem\n\
                    Acquire::https::Odd\ta\"b\n\
                    Acquire::Languages::\tde\n\
                    Acquire::IndexTargets::deb::DEP-11::MetaKey\tx\n\
                    Acquire::Retries\t3\n\
                    nonsense\n";
        assert_eq!(
            select_transport(dump),
            "Acquire::http::Proxy \"http://127.0.0.1:3142\";\n\
             Acquire::http::Proxy::m.test \"DIRECT\";\n\
             Acquire::https::CaInfo \"/etc/ca;x.pem\";\n\
             Acquire::Retries \"3\";\n"
        );
    }
}
