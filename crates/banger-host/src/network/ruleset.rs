//! The packet rules of a VM's network namespace.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use banger_api::vm::NetworkPolicy;

use super::{GATEWAY, PREFIX, TAP};

/// The rules as nft reads them.
///
/// A guest reaches what the host reaches, except link-local addresses and, unless the policy opens
/// them, the host's own. Its only way into the namespace itself is the name server.
#[must_use]
pub fn ruleset(policy: NetworkPolicy, host_addresses: &[Ipv4Addr]) -> String {
    let mut rules = String::from("table inet banger {\n");
    rules.push_str("  set host {\n    type ipv4_addr;\n  }\n");
    rules.push_str(&forward_chain(policy));
    rules.push_str(&input_chain());
    rules.push_str(&masquerade_chain());
    rules.push_str("}\n");
    rules.push_str(&update(host_addresses));
    rules
}

/// What brings loaded rules up to date with the host's own addresses, in one step.
#[must_use]
pub fn update(host_addresses: &[Ipv4Addr]) -> String {
    let mut update = String::from("flush set inet banger host\n");
    if !host_addresses.is_empty() {
        let set: Vec<String> = host_addresses.iter().map(Ipv4Addr::to_string).collect();
        writeln!(update, "add element inet banger host {{ {} }}", set.join(", "))
            .expect("writing to a string");
    }
    update
}

fn forward_chain(policy: NetworkPolicy) -> String {
    let mut chain = String::from(
        "  chain forward {\n    type filter hook forward priority filter; policy drop;\n",
    );
    let mut line = |text: String| writeln!(chain, "    {text}").expect("writing to a string");
    // First, so that no answer to something allowed can be mistaken for something forbidden.
    line(format!("iifname \"{TAP}\" ip daddr {{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 }} drop"));
    line(format!("iifname \"{TAP}\" ip6 daddr fe80::/10 drop"));
    if policy == NetworkPolicy::Default {
        line(format!("iifname \"{TAP}\" ip daddr @host drop"));
    }
    line(format!("iifname \"{TAP}\" accept"));
    line(format!("oifname \"{TAP}\" ct state established,related accept"));
    chain.push_str("  }\n");
    chain
}

/// pasta of 2023 sends segments that conntrack calls invalid. They are not translated back, so the
/// namespace's own stack would answer them with a reset and end every connection of the guest after
/// its first data. Hence `ct state invalid drop` comes first.
fn input_chain() -> String {
    format!(
        "  chain input {{
    type filter hook input priority filter; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname \"lo\" accept
    iifname \"{TAP}\" ip daddr {GATEWAY} udp dport 53 accept
    iifname \"{TAP}\" ip daddr {GATEWAY} tcp dport 53 accept
    iifname \"{TAP}\" ip daddr {GATEWAY} icmp type echo-request accept
  }}
"
    )
}

fn masquerade_chain() -> String {
    format!(
        "  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname != \"{TAP}\" ip saddr {GATEWAY}/{PREFIX} masquerade
  }}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_addresses_are_closed_unless_opened() {
        let host = [Ipv4Addr::new(192, 168, 1, 5), Ipv4Addr::new(172, 17, 0, 1)];
        let closed = ruleset(NetworkPolicy::Default, &host);
        assert!(closed.contains("ip daddr @host drop"));
        assert!(closed.contains("add element inet banger host { 192.168.1.5, 172.17.0.1 }"));
        let open = ruleset(NetworkPolicy::HostAccess, &host);
        assert!(!open.contains("@host"));
        for rules in [closed, open] {
            assert!(rules.contains("169.254.0.0/16 } drop"));
            assert!(rules.contains("ct state invalid drop"));
        }
    }

    #[test]
    fn a_host_without_addresses_makes_no_empty_set() {
        assert!(!ruleset(NetworkPolicy::Default, &[]).contains("{  }"));
    }
}
