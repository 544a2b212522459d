//! Where the guest asks for names.

use std::fmt::Write;
use std::path::Path;

use banger_api::agent::GuestNetwork;

use super::ConfigureError;
use crate::files;

/// Writes `/etc/resolv.conf` as a file of its own, whatever the image has there.
pub fn configure(network: &GuestNetwork) -> Result<(), ConfigureError> {
    files::put_anew(Path::new("/etc/resolv.conf"), resolv_conf(network).as_bytes(), 0o644)
        .map_err(ConfigureError::step("writing /etc/resolv.conf"))
}

fn resolv_conf(network: &GuestNetwork) -> String {
    let mut text = String::new();
    let search: Vec<&str> =
        network.search.iter().map(String::as_str).filter(|domain| is_domain(domain)).collect();
    if !search.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in &network.dns {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// The host's own search list may hold anything; only what is a domain passes on.
fn is_domain(domain: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=253).contains(&domain.len()) && domain.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_file_names_servers_and_domains() {
        let network = GuestNetwork {
            address: Ipv4Addr::new(172, 30, 0, 2),
            prefix: 30,
            gateway: Ipv4Addr::new(172, 30, 0, 1),
            dns: vec![Ipv4Addr::new(172, 30, 0, 1)],
            search: ["corp.example", "a b", "x\nnameserver 6.6.6.6", ""].map(str::to_owned).into(),
            mtu: 1500,
        };
        assert_eq!(resolv_conf(&network), "search corp.example\nnameserver 172.30.0.1\n");
    }
}
