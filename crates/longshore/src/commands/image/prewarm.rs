//! `longshore image prewarm`

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use longshore_api::v1::{PrewarmRequest, PrewarmStatus, PrewarmView, PrewarmedNode};
use longshore_client::Project;
use longshore_types::{AppName, ImageReference, ImageState, PlaceMatch};

use crate::commands::schema::Removed;
use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind};
use crate::human;
use crate::output::table_text;
use crate::progress::Progress;
use crate::table::Table;

/// How often nodes are asked how far they are.
const LOOK: Duration = Duration::from_secs(1);

/// Bring an image to nodes before anything starts from it, and keep it there
///
/// Nodes that join later are meant too, and starts always go first. The image of an app is that of its release
/// of now. The command waits until each node that is meant has it. `image ls --wished` lists what was wished.
/// An instance that finds no room otherwise takes that of what is merely wished, and never that of what is pinned.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// An app, or an image as REPOSITORY[:TAG][@DIGEST] with a slash in it
    #[arg(value_name = "APP|IMAGE")]
    what: What,
    /// Which nodes: everywhere, location=NAME or label=KEY=VALUE; may be given several times [default: everywhere]
    #[arg(long = "where", value_name = "WHERE")]
    places: Vec<Where>,
    /// Take the wish back, and the pin with it; what came by it goes when room is needed
    #[arg(long, conflicts_with_all = ["places", "detach", "pin"])]
    rm: bool,
    /// Pin it: nothing takes it from these nodes until --rm, also no instance that finds no room; needs an
    /// administrator
    #[arg(long)]
    pin: bool,
    /// Do not wait
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// What should come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    App(AppName),
    Image(ImageReference),
}

impl FromStr for What {
    type Err = longshore_types::ParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // An app has neither; a repository has its project before the slash.
        match text.contains(['/', ':', '@']) {
            true => text.parse().map(Self::Image),
            false => text.parse().map(Self::App),
        }
    }
}

/// Where it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Where {
    Everywhere,
    Place(PlaceMatch),
}

impl FromStr for Where {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &dyn std::fmt::Display| {
            format!("{text:?} is not everywhere, location=NAME or label=KEY=VALUE: {why}")
        };
        match text.split_once('=') {
            None if text == "everywhere" => Ok(Self::Everywhere),
            Some(("location", name)) => {
                let name = name.parse().map_err(|error| refuse(&error))?;
                Ok(Self::Place(PlaceMatch::Location(name)))
            }
            Some(("label", label)) => {
                let label = label.parse().map_err(|error| refuse(&error))?;
                Ok(Self::Place(PlaceMatch::Label(label)))
            }
            _ => Err(refuse(&"it begins with none of these")),
        }
    }
}

/// Lists what was wished.
pub async fn list(connection: &ConnectionOptions, project: &ProjectOption) -> Result<(), Failure> {
    let connection = connection.connect()?;
    let wishes = project.on(&connection).prewarms().await?;
    connection.output.data(&wishes, |wishes| render_wishes(wishes))
}

/// Wishes it, or takes the wish back.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let (project, what) = (options.project.on(&connection), options.what);
    if options.rm {
        let wish = find(&project, &what).await?;
        project.remove_prewarm(&wish.digest).await?;
        let removed = Removed { removed: wish.image.clone() };
        return connection.output.data(&removed, |_| format!("{}: no longer wished\n", wish.image));
    }
    let everywhere = options.places.contains(&Where::Everywhere);
    let places = options.places.into_iter().filter_map(|place| match place {
        Where::Place(place) if !everywhere => Some(place),
        _ => None,
    });
    let places = places.collect();
    let (app, image) = match what {
        What::App(app) => (Some(app), None),
        What::Image(image) => (None, Some(image)),
    };
    let pin = options.pin;
    let wish = project.prewarm(&PrewarmRequest { app, image, places, pin }).await?;
    if pin && !wish.pinned {
        let message = format!(
            "{} is wished and not pinned: the platform is of an earlier release",
            wish.image
        );
        return Err(Failure::new(Kind::Other, message));
    }
    let status = match options.detach {
        true => PrewarmStatus { wish, nodes: Vec::new() },
        false => wait(&project, &wish).await?,
    };
    connection.output.data(&status, render)?;
    let failed = status.nodes.iter().filter(|node| node.given_up).count();
    if failed > 0 || status.wish.ended.is_some() {
        let nodes = human::count(failed, "node");
        return Err(Failure::new(Kind::Other, format!("{nodes} cannot have the image")));
    }
    Ok(())
}

/// The wish for an app or image, whichever release or digest that was when it was made.
async fn find(project: &Project, what: &What) -> Result<PrewarmView, Failure> {
    let wishes = project.prewarms().await?;
    let is_meant = |wish: &PrewarmView| match what {
        What::App(app) => wish.image.split_once(' ').is_some_and(|(of, _)| of == app.as_str()),
        What::Image(image) => {
            let named = ImageReference { registry: None, ..image.clone() };
            // That of another registry is named with that.
            let there = ImageReference { repository: image.repository_there(), ..image.clone() };
            [named, there].iter().any(|named| wish.image == named.to_string())
                || image.digest == Some(wish.digest)
        }
    };
    // The newest, should there be one for each of several releases.
    let found = wishes.into_iter().filter(is_meant).max_by_key(|wish| wish.created_at);
    found.ok_or_else(|| {
        let failure = Failure::new(Kind::NotFound, "nobody wished that");
        failure.hint("`longshore image ls --wished` lists what was wished")
    })
}

/// Waits until each node has it, or cannot.
async fn wait(project: &Project, wish: &PrewarmView) -> Result<PrewarmStatus, Failure> {
    let progress = Progress::begin();
    let mut told = BTreeMap::new();
    loop {
        let status = project.prewarm_status(&wish.digest).await?;
        let is_over = |node: &PrewarmedNode| is_here(node) || node.given_up;
        for node in &status.nodes {
            let name = format!("{} of {}", node.node, node.location);
            let said = said(node);
            // How far a pull is, is outdated at once.
            let is_steady = !matches!(node.state, ImageState::Pulling { .. });
            if is_steady && told.insert(name.clone(), said.clone()) != Some(said.clone()) {
                progress.line(&format!("{name}: {said}"));
            }
        }
        let done = status.nodes.iter().filter(|node| is_over(node)).count();
        let as_steps = |count| u32::try_from(count).unwrap_or(u32::MAX);
        progress.steps(as_steps(done), as_steps(status.nodes.len()));
        progress.status(under_way(&status.nodes));
        if done == status.nodes.len() || status.wish.ended.is_some() {
            return Ok(status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_here(node: &PrewarmedNode) -> bool {
    matches!(node.state, ImageState::Complete | ImageState::Mounted)
}

fn said(node: &PrewarmedNode) -> String {
    match &node.note {
        Some(note) if !is_here(node) => format!("{}: {note}", node.state),
        _ => node.state.to_string(),
    }
}

/// How far the pulls are together.
fn under_way(nodes: &[PrewarmedNode]) -> String {
    let pulls = nodes.iter().filter_map(|node| match node.state {
        ImageState::Pulling { done, of } => Some((done.0, of.0)),
        _ => None,
    });
    let (done, of) = pulls.fold((0, 0), |sum, pull| (sum.0 + pull.0, sum.1 + pull.1));
    match of {
        0 => "waiting".to_owned(),
        of => {
            let state = ImageState::Pulling {
                done: longshore_types::ByteCount(done),
                of: longshore_types::ByteCount(of),
            };
            state.to_string()
        }
    }
}

fn render(PrewarmStatus { wish, nodes }: &PrewarmStatus) -> String {
    let short = human::short_digest(&wish.digest.to_string()).to_owned();
    let head = format!("{} ({short}) is {} {}\n", wish.image, how(wish), places(wish));
    if nodes.is_empty() {
        return head;
    }
    let mut table = Table::new(&["NODE", "LOCATION", "STATE"]);
    for node in nodes {
        table.row([node.node.to_string(), node.location.to_string(), said(node)]);
    }
    head + &table_text(&table)
}

fn render_wishes(wishes: &[PrewarmView]) -> String {
    let mut table = Table::new(&["IMAGE", "DIGEST", "WHERE", "BY", "STATE"]);
    for wish in wishes {
        table.row([
            wish.image.clone(),
            human::short_digest(&wish.digest.to_string()).to_owned(),
            places(wish),
            wish.by.to_string(),
            wish.ended.clone().unwrap_or_else(|| how(wish).to_owned()),
        ]);
    }
    table_text(&table)
}

/// How much it is wished.
fn how(wish: &PrewarmView) -> &'static str {
    if wish.pinned { "pinned" } else { "wished" }
}

fn places(wish: &PrewarmView) -> String {
    let places: Vec<_> = wish.places.iter().map(ToString::to_string).collect();
    if places.is_empty() { "everywhere".to_owned() } else { places.join(", ") }
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, Digest, Timestamp};

    use super::*;

    #[test]
    fn places_and_images_are_told_apart() {
        let place = |text: &str| text.parse::<Where>();
        assert_eq!(place("everywhere"), Ok(Where::Everywhere));
        let ams = PlaceMatch::Location("ams".parse().unwrap());
        assert_eq!(place("location=ams"), Ok(Where::Place(ams)));
        let nvme = PlaceMatch::Label("disk=nvme".parse().unwrap());
        assert_eq!(place("label=disk=nvme"), Ok(Where::Place(nvme)));
        for bad in ["", "ams", "location=Ams", "location=", "label=nvme", "node=n1"] {
            let error = place(bad).unwrap_err();
            assert!(error.contains("everywhere, location=NAME or label=KEY=VALUE"), "{error}");
        }
        assert!(matches!("web".parse(), Ok(What::App(_))));
        for image in ["default/web", "default/web:1", "web:1"] {
            assert!(matches!(image.parse(), Ok(What::Image(_))), "{image}");
        }
        assert!("Web".parse::<What>().is_err());
    }

    #[test]
    fn what_became_of_a_wish_fits_a_terminal() {
        let node = |node: &str, state, note: Option<&str>, given_up| PrewarmedNode {
            location: "ams".parse().unwrap(),
            node: node.parse().unwrap(),
            state,
            note: note.map(str::to_owned),
            given_up,
        };
        let wish = PrewarmView {
            image: "default/web:1".to_owned(),
            repository: "default/web".parse().unwrap(),
            digest: Digest::from_sha256([7; 32]),
            places: vec!["disk=nvme".parse().unwrap()],
            created_at: Timestamp(1),
            by: "admin".parse().unwrap(),
            pinned: false,
            ended: Some("the registry no longer has it".to_owned()),
        };
        let pulling = ImageState::Pulling { done: ByteCount::mib(1), of: ByteCount::mib(3) };
        let why =
            "fetching the manifest sha256:07: the registry does not have it, and so on and on";
        let nodes = vec![
            node("n1", ImageState::Complete, Some("old news"), false),
            node("n2", pulling, None, false),
            node("n3", ImageState::Absent, Some(why), true),
        ];
        assert_eq!(under_way(&nodes), "pulling 1 MiB of 3 MiB");
        let text = render(&PrewarmStatus { wish: wish.clone(), nodes });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("wished disk=nvme\n") && text.contains("absent: fetching"), "{text}");
        assert!(!text.contains("old news"), "{text}");
        let pinned = PrewarmView { pinned: true, ended: None, ..wish.clone() };
        let told = render(&PrewarmStatus { wish: pinned.clone(), nodes: Vec::new() });
        assert!(told.ends_with(" is pinned disk=nvme\n"), "{told}");
        let text = render_wishes(&[wish, pinned]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("the registry no longer"), "{text}");
        assert!(text.lines().last().is_some_and(|line| line.ends_with("pinned")), "{text}");
    }
}
