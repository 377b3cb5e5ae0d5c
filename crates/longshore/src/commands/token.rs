//! `longshore token`

use std::collections::BTreeMap;
use std::str::FromStr;

use longshore_api::v1::{TokenCreated, TokenRequest, TokenView};
use longshore_types::token::{ProjectRole, RegistryAction, RegistryRight, Rights, Role};
use longshore_types::{AppName, ProjectName, Repository, Timestamp};

use super::schema::Removed;
use crate::connection::ConnectionOptions;
use crate::failure::{Failure, Kind};
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// Make, list and remove tokens
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Create(CreateOptions),
    Ls(ListOptions),
    Rm(RemoveOptions),
}

/// Make a token; its text is shown this once
///
/// A pattern is a repository, or `prefix/*` for all below a prefix, or `*` for all.
#[derive(Debug, clap::Args)]
struct CreateOptions {
    /// A name that tells the token from others
    name: AppName,
    /// Allow everything everywhere
    #[arg(long, conflicts_with_all = ["role", "pull", "push", "delete"])]
    admin: bool,
    /// Give a role: `read` looks, `deploy` changes apps and secrets, `admin` makes tokens too
    #[arg(long, value_name = "ROLE")]
    role: Option<Role>,
    /// The project of the role
    #[arg(long, value_name = "NAME", default_value = "default", requires = "role")]
    project: ProjectName,
    /// The role holds in every project
    #[arg(long, requires = "role", conflicts_with = "project")]
    all_projects: bool,
    /// Allow pulling from these repositories; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pull: Vec<Pattern>,
    /// Allow pushing to these repositories, which includes pulling; may be repeated
    #[arg(long, value_name = "PATTERN")]
    push: Vec<Pattern>,
    /// Allow deleting from these repositories; may be repeated
    #[arg(long, value_name = "PATTERN")]
    delete: Vec<Pattern>,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// List the tokens
#[derive(Debug, clap::Args)]
struct ListOptions {
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Remove a token; it is refused from then on
#[derive(Debug, clap::Args)]
struct RemoveOptions {
    /// The name of the token
    name: AppName,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// A checked pattern of repositories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern(String);

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fixed = match text {
            "*" => None,
            _ => Some(text.strip_suffix("/*").unwrap_or(text)),
        };
        if fixed.is_some_and(|fixed| fixed.parse::<Repository>().is_err()) {
            return Err("a repository such as default/web, or default/*, or *".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Carries the verb out.
pub async fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Create(options) => create(options).await,
        Verb::Ls(options) => list(options).await,
        Verb::Rm(options) => remove(options).await,
    }
}

async fn create(options: CreateOptions) -> Result<(), Failure> {
    let rights = rights_of(&options);
    if rights == Rights::default() {
        return Err(Failure::new(Kind::Usage, "a token without rights is of no use").hint(
            "give --role and a project, --pull, --push or --delete and repositories, or --admin",
        ));
    }
    let connection = options.connection.connect()?;
    let request = TokenRequest { name: options.name, rights };
    let created: TokenCreated = connection.api.create_token(&request).await?;
    connection.output.data(&created, |created| format!("{}\n", created.token))
}

fn rights_of(options: &CreateOptions) -> Rights {
    let mut registry: BTreeMap<&Pattern, Vec<RegistryAction>> = BTreeMap::new();
    let grants = [
        (&options.pull, RegistryAction::Pull),
        // A client that pushes first asks what is there already.
        (&options.push, RegistryAction::Pull),
        (&options.push, RegistryAction::Push),
        (&options.delete, RegistryAction::Delete),
    ];
    for (patterns, action) in grants {
        for pattern in patterns {
            let actions = registry.entry(pattern).or_default();
            if !actions.contains(&action) {
                actions.push(action);
            }
        }
    }
    let project = (!options.all_projects).then(|| options.project.clone());
    Rights {
        admin: options.admin,
        roles: options.role.map(|role| ProjectRole { project, role }).into_iter().collect(),
        registry: registry
            .into_iter()
            .map(|(pattern, actions)| RegistryRight { repositories: pattern.0.clone(), actions })
            .collect(),
    }
}

async fn list(options: ListOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let tokens = connection.api.tokens().await?;
    let now = longshore_link::now();
    connection.output.data(&tokens, |tokens| render(tokens, now))
}

fn render(tokens: &[TokenView], now: Timestamp) -> String {
    let mut table = Table::new(&["NAME", "AGE", "RIGHTS"]);
    for token in tokens {
        table.row([
            token.name.to_string(),
            human::age(now, token.created_at),
            describe(&token.rights),
        ]);
    }
    table_text(&table)
}

fn describe(rights: &Rights) -> String {
    if rights.admin {
        return "admin".to_owned();
    }
    let right = |right: &RegistryRight| {
        let actions: Vec<_> = right.actions.iter().map(|action| word(*action)).collect();
        format!("{} {}", actions.join("+"), right.repositories)
    };
    let role = |role: &ProjectRole| match &role.project {
        Some(project) => format!("{} in {project}", role.role),
        None => format!("{} in every project", role.role),
    };
    let roles = rights.roles.iter().map(role);
    let all: Vec<_> = roles.chain(rights.registry.iter().map(right)).collect();
    all.join(", ")
}

fn word(action: RegistryAction) -> &'static str {
    match action {
        RegistryAction::Pull => "pull",
        RegistryAction::Push => "push",
        RegistryAction::Delete => "delete",
    }
}

async fn remove(options: RemoveOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let name = &options.name;
    connection.api.remove_token(name).await?;
    let removed = Removed { removed: name.to_string() };
    connection.output.data(&removed, |_| format!("{name}: removed\n"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Create {
        #[command(flatten)]
        options: CreateOptions,
    }

    #[test]
    fn rights_are_gathered_by_repository() {
        let line = ["x", "ci", "--pull", "a/*", "--push", "a/*", "--delete", "b/c"];
        let rights = rights_of(&Create::try_parse_from(line).unwrap().options);
        assert_eq!(describe(&rights), "pull+push a/*, delete b/c");
        let admin = Create::try_parse_from(["x", "ci", "--admin"]).unwrap();
        assert_eq!(describe(&rights_of(&admin.options)), "admin");
        for (line, expected) in [
            (&["x", "ci", "--role", "deploy"][..], "deploy in default"),
            (&["x", "ci", "--role", "read", "--project", "a", "--pull", "b"], "read in a, pull b"),
            (&["x", "ci", "--role", "read", "--all-projects"], "read in every project"),
        ] {
            let rights = rights_of(&Create::try_parse_from(line).unwrap().options);
            assert_eq!(describe(&rights), expected);
        }
        for bad in [
            &["x", "ci", "--role", "owner"][..],
            &["x", "ci", "--all-projects"],
            &["x", "ci", "--admin", "--role", "read"],
        ] {
            assert!(Create::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn patterns_are_whole_repositories() {
        for good in ["*", "a", "a/b", "a/*"] {
            assert!(good.parse::<Pattern>().is_ok(), "{good}");
        }
        for bad in ["", "a*", "/*", "A/b", "a//b", "a/**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
