//! Living beside firewalls that drop by default.
//!
//! dockerd sets the policy of iptables' FORWARD chain to DROP, ufw that of INPUT as well. A drop is
//! final whatever other tables say, so the packets of our instances must be let through there; what
//! they may do is then still decided by our own table. We add to these chains only when they drop,
//! and only rules about our own links, each with a comment that names the agent and by which it is
//! found again. Both kinds of iptables are looked at, since docker may use either.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::layout::{Layout, link_prefix};
use crate::{AgentId, program};

/// The rules of the system's firewall could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// The program could not be run to its end.
    #[error("run {program}", program = program.display())]
    Run {
        /// The program's path.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The program refused.
    #[error("{program} refused {arguments:?}: {complaint}", program = program.display())]
    Refused {
        /// The program's path.
        program: PathBuf,
        /// What it was asked.
        arguments: Vec<String>,
        /// What it said.
        complaint: String,
    },
}

/// A rule of ours: the chain, the words by which it is known, and what it matches.
struct Wanted {
    chain: &'static str,
    comment: String,
    matches: Vec<String>,
}

fn wanted(layout: &Layout) -> Vec<Wanted> {
    let links = format!("{}+", link_prefix(layout.agent));
    let gateway = layout.gateway().to_string();
    let rule = |chain, name: &str, matches: &[&str]| Wanted {
        chain,
        comment: format!("{}{name}", comment_prefix(layout.agent)),
        matches: matches.iter().map(|&word| word.to_owned()).collect(),
    };
    let dns = |protocol| {
        let name = format!("dns-{protocol}");
        rule("INPUT", &name, &["-i", &links, "-d", &gateway, "-p", protocol, "--dport", "53"])
    };
    vec![
        rule("FORWARD", "out", &["-i", &links]),
        rule("FORWARD", "in", &["-o", &links]),
        dns("udp"),
        dns("tcp"),
    ]
}

fn comment_prefix(agent: AgentId) -> String {
    format!("longshore-{agent}-")
}

/// Lets our packets through every iptables chain that would drop them.
pub(crate) async fn ensure_accepted(layout: &Layout) -> Result<(), FirewallError> {
    for iptables in Iptables::in_use().await {
        for chain in ["FORWARD", "INPUT"] {
            let rules = iptables.rules(chain).await?;
            if !drops(&rules) {
                continue;
            }
            for rule in wanted(layout).into_iter().filter(|rule| rule.chain == chain) {
                if !rules.contains(&format!("--comment {} ", rule.comment)) {
                    iptables.insert(rule).await?;
                }
            }
        }
    }
    Ok(())
}

/// Removes every rule of the agent.
pub(crate) async fn ensure_removed(agent: AgentId) -> Result<(), FirewallError> {
    for iptables in Iptables::in_use().await {
        for chain in ["FORWARD", "INPUT"] {
            let rules = iptables.rules(chain).await?;
            let ours = format!("--comment {}", comment_prefix(agent));
            for rule in rules.lines().filter(|line| line.contains(&ours)) {
                // Every rule is printed as the arguments that add it; none of ours has a quote.
                iptables.run(rule.replacen("-A", "-D", 1).split(' ')).await?;
            }
        }
    }
    Ok(())
}

/// True when the chain, as `iptables -S` prints it, drops or rejects what it does not know.
fn drops(rules: &str) -> bool {
    rules.lines().any(|line| {
        let dropping = line.contains("-j DROP") || line.contains("-j REJECT");
        (line.starts_with("-P") && line.ends_with("DROP")) || (line.starts_with("-A") && dropping)
    })
}

struct Iptables {
    program: PathBuf,
}

impl Iptables {
    /// The kinds of iptables that have a filter table. Only asking would create one, and with the
    /// legacy kind load a kernel module, so that the kernel is asked in another way first.
    async fn in_use() -> Vec<Self> {
        let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
        let legacy = legacy.is_ok_and(|names| names.lines().any(|name| name == "filter"));
        let legacy = if legacy { program::find("iptables-legacy") } else { None };
        // The program for nf_tables makes no table until a rule is added.
        let nft = program::find("iptables-nft");
        [legacy, nft].into_iter().flatten().map(|program| Self { program }).collect()
    }

    /// The chain as the arguments that would make it, one rule a line.
    async fn rules(&self, chain: &str) -> Result<String, FirewallError> {
        let output = self.run(["-S", chain]).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn insert(&self, rule: Wanted) -> Result<(), FirewallError> {
        let mut arguments = vec!["-I".to_owned(), rule.chain.to_owned()];
        arguments.extend(rule.matches);
        let comment = ["-m", "comment", "--comment", &rule.comment, "-j", "ACCEPT"];
        arguments.extend(comment.map(str::to_owned));
        self.run(arguments.iter().map(String::as_str)).await?;
        tracing::info!(chain = rule.chain, rule = rule.comment, "added to a firewall that drops");
        Ok(())
    }

    async fn run<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Output, FirewallError> {
        let arguments: Vec<&str> = ["-w", "10"].into_iter().chain(arguments).collect();
        let output = self.output(&arguments).await?;
        if !output.status.success() {
            return Err(FirewallError::Refused {
                program: self.program.clone(),
                arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
                complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Ok(output)
    }

    async fn output(&self, arguments: &[&str]) -> Result<Output, FirewallError> {
        let program: &Path = &self.program;
        program::run(program, arguments, "")
            .await
            .map_err(|source| FirewallError::Run { program: program.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_drops_is_known_by_its_policy_or_its_rules() {
        let docker = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n";
        let rhel = "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        for (rules, expected) in
            [(docker, true), (rhel, true), ("-P FORWARD ACCEPT\n", false), ("", false)]
        {
            assert_eq!(drops(rules), expected, "{rules}");
        }
    }
}
