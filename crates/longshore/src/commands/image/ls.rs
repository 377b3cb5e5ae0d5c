//! `longshore image ls`

use longshore_types::{LocationName, NodeName, Repository};
use serde::Serialize;

use super::stocked::{of_location, of_node};
use super::{failed, kept, prewarm, registry};
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::Failure;
use crate::human;
use crate::output::table_text;
use crate::table::Table;

/// List the images of the registry, of a node or of the nodes of a location
///
/// --json shows whole digests. On a node an image that nothing keeps goes when room is needed, the least
/// recently used first.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only the images of this repository
    #[arg(conflicts_with_all = ["node", "location"])]
    repository: Option<Repository>,
    /// The images of this node
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// The images of all nodes of this location, or that of the node
    #[arg(long, value_name = "NAME")]
    location: Option<LocationName>,
    /// The images that somebody wished on nodes (`image prewarm`)
    #[arg(long, conflicts_with_all = ["repository", "node", "location"])]
    wished: bool,
    /// Why the registry keeps each manifest of the repository; who may delete from it may know
    #[arg(long, requires = "repository", conflicts_with_all = ["node", "location"])]
    why: bool,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// A tag and where it leads.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Row {
    repository: Repository,
    tag: String,
    digest: String,
}

/// Lists the images.
pub async fn run(options: Options) -> Result<(), Failure> {
    let Options { repository, node, location, wished, why, project, connection } = options;
    if wished {
        return prewarm::list(&connection, &project).await;
    }
    if let Some(repository) = repository.as_ref().filter(|_| why) {
        return kept::list(&connection, repository).await;
    }
    match (node, location) {
        (Some(node), location) => of_node(&connection, node, location).await,
        (None, Some(location)) => of_location(&connection, location).await,
        (None, None) => of_registry(&connection, repository).await,
    }
}

async fn of_registry(
    connection: &ConnectionOptions,
    repository: Option<Repository>,
) -> Result<(), Failure> {
    let (connection, client) = registry(connection, None).await?;
    let repositories = match repository {
        Some(repository) => vec![repository],
        None => client.repositories().await.map_err(|error| failed("the registry", &error))?,
    };
    let mut rows = Vec::new();
    for repository in repositories {
        let fail = |error| failed(&repository, &error);
        for tag in client.tags(&repository).await.map_err(fail)? {
            // A tag that was removed since it was listed is not there any more.
            let Some(digest) = client.resolve(&repository, &tag).await.map_err(fail)? else {
                continue;
            };
            rows.push(Row { repository: repository.clone(), tag, digest: digest.to_string() });
        }
    }
    connection.output.data(&rows, |rows| render(rows))
}

fn render(rows: &[Row]) -> String {
    let mut table = Table::new(&["IMAGE", "DIGEST"]);
    for Row { repository, tag, digest } in rows {
        table.row([format!("{repository}:{tag}"), human::short_digest(digest).to_owned()]);
    }
    table_text(&table)
}
