//! The packet rules of an agent, as text for `nft`.
//!
//! What an instance may reach is decided in one place: before routing and before anyone's address
//! translation, so that a rule speaks of the address that the instance dialled, whether that turns
//! out to be the host's own or not, and no port that docker publishes leads around it. An accept
//! here ends only our own chain; a drop is final. Other firewalls can thus only forbid more.
//!
//! A source is genuine when the kernel would route to it through the link that it came from. The
//! routing table knows that already, so that starting an instance changes no packet rule, and the
//! cost of a packet does not grow with the number of instances. Only an instance with an egress
//! list gets a chain of its own, found by its (by then proven) source address in a verdict map.

use std::fmt::Write;

use longshore_types::{EgressRule, IpNet};

use crate::AgentId;
use crate::layout::{Layout, Slot, link_prefix};

/// The name of the agent's table, of family `inet`.
pub(crate) fn table_name(agent: AgentId) -> String {
    format!("longshore_{agent}")
}

/// Replaces the whole table, whatever was in it, in one transaction.
pub(crate) fn replace_table<'a>(
    layout: &Layout,
    egress: impl IntoIterator<Item = (Slot, &'a [EgressRule])>,
) -> String {
    let table = table_name(layout.agent);
    let agent = layout.agent;
    let links = format!("\"{}*\"", link_prefix(agent));
    let subnet = layout.subnet;
    let gateway = layout.gateway();
    let not_public = IpNet::NOT_PUBLIC.map(|net| net.to_string()).join(", ");
    let mut script = format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
    comment "Longshore agent {agent}"
    set not_public {{
        type ipv4_addr
        flags interval
        elements = {{ {not_public} }}
    }}
    map egress {{
        type ipv4_addr : verdict
    }}
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname {links} goto from_instance
        iifname "lo" accept
        ip saddr {subnet} drop
        ip daddr {subnet} drop
    }}
    chain from_instance {{
        meta nfproto != ipv4 drop
        fib saddr . iif oif missing drop
        ct state vmap {{ established : accept, related : accept, invalid : drop }}
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip saddr vmap @egress
        fib daddr type != unicast reject with icmp admin-prohibited
        ip daddr @not_public reject with icmp admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        oifname {links} ct state established,related accept
        oifname {links} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != {links} masquerade
    }}
}}
"#
    );
    for (slot, rules) in egress {
        script.push_str(&set_egress(layout, slot, rules));
    }
    script
}

/// Lets the instance in a slot reach what `rules` name, and nothing that earlier ones named.
pub(crate) fn set_egress(layout: &Layout, slot: Slot, rules: &[EgressRule]) -> String {
    if rules.is_empty() {
        return clear_egress(layout, slot);
    }
    let table = table_name(layout.agent);
    let address = layout.address(slot);
    let mut script = format!(
        "add chain inet {table} egress_{slot}\n\
         flush chain inet {table} egress_{slot}\n"
    );
    for EgressRule { network, port } in rules {
        let port = port.map(|(port, protocol)| format!(" {protocol} dport {}", port.get()));
        let port = port.unwrap_or_default();
        writeln!(script, "add rule inet {table} egress_{slot} ip daddr {network}{port} accept")
            .expect("a string can always be written to");
    }
    writeln!(script, "add element inet {table} egress {{ {address} : jump egress_{slot} }}")
        .expect("a string can always be written to");
    script
}

/// Takes the egress list of a slot away, also when there is none: `nft` 1.0 has no verb for that,
/// so that what is deleted is added first.
pub(crate) fn clear_egress(layout: &Layout, slot: Slot) -> String {
    let table = table_name(layout.agent);
    let address = layout.address(slot);
    format!(
        "add chain inet {table} egress_{slot}\n\
         add element inet {table} egress {{ {address} : jump egress_{slot} }}\n\
         delete element inet {table} egress {{ {address} : jump egress_{slot} }}\n\
         flush chain inet {table} egress_{slot}\n\
         delete chain inet {table} egress_{slot}\n"
    )
}

/// Removes the table, also when there is none.
pub(crate) fn remove_table(agent: AgentId) -> String {
    let table = table_name(agent);
    format!("add table inet {table}\ndelete table inet {table}\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn layout() -> Layout {
        let subnet = "100.64.8.0/22".parse().unwrap();
        Layout::new("abc123".parse().unwrap(), subnet, Path::new("/run/x"))
    }

    #[test]
    fn an_egress_rule_names_its_network_port_and_protocol() {
        let rules = ["10.0.0.0/8:5432/tcp", "192.168.1.7:53/udp", "172.16.0.0/12"];
        let rules: Vec<EgressRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let script = set_egress(&layout(), 5, &rules);
        for line in [
            "egress_5 ip daddr 10.0.0.0/8 tcp dport 5432 accept",
            "egress_5 ip daddr 192.168.1.7/32 udp dport 53 accept",
            "egress_5 ip daddr 172.16.0.0/12 accept",
            "add element inet longshore_abc123 egress { 100.64.8.5 : jump egress_5 }",
        ] {
            assert!(script.contains(line), "{line} is missing in\n{script}");
        }
    }

    #[test]
    fn an_empty_egress_list_takes_the_old_one_away() {
        assert_eq!(set_egress(&layout(), 5, &[]), clear_egress(&layout(), 5));
    }

    #[test]
    fn nothing_but_the_table_of_the_agent_is_touched() {
        let rules = ["10.0.0.0/8".parse().unwrap()];
        let script = replace_table(&layout(), [(7, rules.as_slice())]);
        for line in script.lines().filter(|line| line.contains(" inet ")) {
            assert!(line.contains("longshore_abc123"), "{line}");
        }
        assert!(!script.contains("flush ruleset"));
    }
}
