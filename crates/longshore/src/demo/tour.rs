//! What the demo does with its platform, step by step, and what it shows of it.

use std::path::Path;
use std::time::{Duration, Instant};

use longshore_api::v1::InstanceView;
use longshore_client::{Client, Project};
use longshore_types::{AppName, Manifest};
use serde_json::json;

use super::request;
use crate::commands::explain;
use crate::commands::image::{pack_own_program, push_layout};
use crate::connection::{Connection, RegistryAddress};
use crate::context_file::Endpoints;
use crate::failure::{Failure, Kind, OrFail};
use crate::human;
use crate::output::{Format, Output, say, table_text};
use crate::rollout::{self, Rollout};
use crate::supervisor::{find_program, own_program};
use crate::table::Table;
use crate::target::instances_of;

pub(super) const APP: &str = "hello";
const IMAGE: &str = "default/hello:demo";
const N_REQUESTS: usize = 20;
const HEALTHY: Duration = Duration::from_secs(90);

/// The whole tour.
pub async fn run(endpoints: &Endpoints, token_file: &Path) -> Result<(), Failure> {
    let token = std::fs::read_to_string(token_file)
        .or_fail(Kind::Denied, "cannot read the administrator's token")?
        .trim()
        .to_owned();
    let api = endpoints.api.parse().map_err(|why: String| Failure::new(Kind::Other, why))?;
    let connection = Connection {
        api: Client::new(api, &token),
        token,
        ca: None,
        output: Output::new(Format::Text),
    };
    let project = connection.api.project(&Default::default());

    let pushed_in = pack_and_push(&connection, endpoints).await?;
    say("Deploying two instances of it");
    let app = deploy(&project, 2).await?;
    send_requests(&endpoints.ingress).await?;
    let instances = instances_of(&project, &app).await?;
    say("\nWhere they are, and why:");
    for instance in &instances {
        let explanation = project.explain(instance.id()).await?;
        say(format!("\n{}", explain::render(&explanation).trim_end()));
    }
    say(format!("\nHow long each stage took:\n{}", stages(pushed_in, &instances)));
    Ok(())
}

/// What a person may want to try next.
pub fn next_commands(endpoints: &Endpoints) -> String {
    let own = own_program().map(|path| path.display().to_string());
    let longshore = match find_program("longshore") {
        Some(_) => "longshore".to_owned(),
        None => own.unwrap_or_else(|_| "longshore".to_owned()),
    };
    let port = endpoints.ingress.rsplit(':').next().unwrap_or_default();
    format!(
        "The platform stays up until Ctrl-C. In another terminal, as root:\n\
         \x20 curl http://{APP}.localhost:{port}/\n\
         \x20 {longshore} ps\n\
         \x20 {longshore} scale {APP}=4\n\
         \x20 {longshore} logs -f {APP}\n\
         \x20 {longshore} image pack /bin/ls --push default/ls:1\n\
         \x20 {longshore} token create ui --role read    # for the dashboard, {api}/ui\n\
         \x20 {longshore} --help",
        api = endpoints.api
    )
}

pub(super) async fn pack_and_push(
    connection: &Connection,
    endpoints: &Endpoints,
) -> Result<Duration, Failure> {
    say("Packing this program and the libraries it needs into an image");
    let layout = tempfile::tempdir().or_fail(Kind::Other, "cannot make a directory")?;
    let image = layout.path().join("image");
    pack_own_program(&image, &["demo-server"]).await?;
    say(format!("Pushing it to the registry at {} as {IMAGE}", endpoints.registry));
    let begun = Instant::now();
    let reference = IMAGE.parse().or_fail(Kind::Other, "the demo's image")?;
    let registry = RegistryAddress { is_own: true, ..RegistryAddress::named(&endpoints.registry) };
    let pushed = push_layout(&image, &registry, connection, &reference).await?;
    say(format!("  {}", pushed.digest));
    Ok(begun.elapsed())
}

/// Deploys so many instances and waits until they are healthy.
pub(super) async fn deploy(project: &Project, count: u32) -> Result<AppName, Failure> {
    let document = json!({
        "app": APP,
        "image": IMAGE,
        "count": count,
        "port": 8080,
        "health": { "path": "/health" },
        "resources": { "cpu": 0.25, "memory": "64MiB" },
        "process": { "stop_grace": "2s" },
    });
    let manifest = Manifest::from_document(&document)
        .map_err(|problems| Failure::from(longshore_api::Problem::invalid(problems)))?;
    let response = project.deploy(&manifest.app, document).await?;
    let number = response.release.number;
    let rollout = Rollout::new(manifest.app.clone(), number, response.generation);
    rollout::wait(project, rollout, HEALTHY).await?;
    Ok(manifest.app)
}

async fn send_requests(ingress: &str) -> Result<(), Failure> {
    let host = format!("{APP}.localhost");
    say(format!("\n{N_REQUESTS} requests to http://{host} through the ingress at {ingress}:"));
    for number in 1..=N_REQUESTS {
        let begun = Instant::now();
        let answer = request::get(ingress, &host).await?;
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        say(format!("  {number:>2}  {:>8}  {}", human::micros(took), answer.trim_end()));
    }
    Ok(())
}

/// A row per stage, a column per instance.
fn stages(pushed_in: Duration, instances: &[InstanceView]) -> String {
    let mut header = vec!["STAGE"];
    header.extend(instances.iter().map(|instance| instance.id().as_str()));
    let mut table = Table::new(&header);
    let push = human::micros(u64::try_from(pushed_in.as_micros()).unwrap_or(u64::MAX));
    let mut row = vec!["push".to_owned()];
    row.extend(instances.iter().map(|_| push.clone()));
    table.row(row);
    for name in stage_names(instances) {
        let mut row = vec![name.to_owned()];
        row.extend(instances.iter().map(|instance| {
            let stages = &instance.observed.stages;
            let stage = stages.iter().find(|stage| stage.name == name);
            stage.map_or("-".to_owned(), |stage| human::micros(stage.micros))
        }));
        table.row(row);
    }
    table_text(&table)
}

/// Every stage that an instance went through, in the order of the first that has it.
fn stage_names(instances: &[InstanceView]) -> Vec<&str> {
    let mut names = Vec::new();
    for stage in instances.iter().flat_map(|instance| &instance.observed.stages) {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use longshore_api::links::Stage;

    use super::*;
    use crate::test_views;

    #[test]
    fn stages_have_a_row_each_and_instances_a_column() {
        let with = |id: &str, stages: &[(&str, u64)]| {
            let mut instance = test_views::instance(id);
            let stage = |(name, micros): &(&str, u64)| Stage {
                name: (*name).to_owned(),
                micros: *micros,
                notes: Vec::new(),
            };
            instance.observed.stages = stages.iter().map(stage).collect();
            instance
        };
        let text = stages(
            Duration::from_millis(80),
            &[
                with("hello-00000001", &[("pull", 12_000), ("ready", 30_000)]),
                with("hello-00000002", &[("ready", 31_000)]),
            ],
        );
        assert_eq!(
            text,
            "STAGE  hello-00000001  hello-00000002\n\
             push   80.0 ms         80.0 ms\n\
             pull   12.0 ms         -\n\
             ready  30.0 ms         31.0 ms\n"
        );
    }
}
