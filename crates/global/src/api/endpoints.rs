//! Every endpoint that asks for a token. There is no other way to be served than by being in this list,
//! and so no way to be served without a word on who may call it.

use longshore_api::links::LogLine;
use longshore_api::v1::{
    AppExplanation, AppLocationView, AppMoveView, AppView, CallerView, CordonRequest,
    DeployRequest, DeployResponse, EventView, Explanation, InstanceView, JoinTokenCreated,
    JoinTokenRequest, LocationView, Move, PlanView, PrewarmRequest, PrewarmStatus, PrewarmView,
    ProjectChange, ProjectView, RegistryView, ReleaseView, RollbackRequest, ScaleRequest,
    SecretKeyView, SecretRequest, SecretView, TokenCreated, TokenRequest, TokenView, UsageView,
};
use longshore_types::token::Role;
use longshore_types::{
    AppName, Cordon, InstanceId, LocationName, NodeImage, Port, ProjectName, Timestamp,
};

use super::Access::{Everywhere, InProject, SomeProject};
use super::endpoint::{DELETE, Endpoint, GET, POST, PUT, endpoint};
use super::{
    Access, apps, archive, cordons, events, images, instances, join_tokens, locations, plan,
    prewarms, registry, releases, secrets, store, tokens, usage, watch, whoami,
};

const READ: Access = InProject(Role::Read);
const DEPLOY: Access = InProject(Role::Deploy);

/// The whole list.
pub(super) fn endpoints() -> Vec<Endpoint> {
    let parts = [
        of_apps(),
        of_instances(),
        of_secrets(),
        of_prewarms(),
        of_projects(),
        of_the_platform(),
        of_its_operators(),
    ];
    parts.into_iter().flatten().collect()
}

fn of_apps() -> Vec<Endpoint> {
    vec![
        endpoint(GET, "/projects/{project}/apps", READ, apps::list)
            .about("listApps", "The apps of a project")
            .answers::<Vec<AppView>>(),
        endpoint(GET, "/projects/{project}/apps/{app}", READ, apps::show)
            .about("showApp", "One app")
            .answers::<AppView>(),
        endpoint(PUT, "/projects/{project}/apps/{app}", DEPLOY, apps::deploy)
            .about("deployApp", "Make a manifest the release that should run")
            .takes::<DeployRequest>()
            .answers::<DeployResponse>(),
        endpoint(DELETE, "/projects/{project}/apps/{app}", DEPLOY, apps::remove)
            .about("removeApp", "Remove an app with all its instances and releases"),
        endpoint(POST, "/projects/{project}/apps/{app}/plan", READ, plan::show)
            .about("planApp", "What a deploy would change, which changes nothing")
            .takes::<DeployRequest>()
            .answers::<PlanView>(),
        endpoint(POST, "/projects/{project}/apps/{app}/scale", DEPLOY, apps::scale)
            .about("scaleApp", "How many instances should run")
            .takes::<ScaleRequest>()
            .answers::<AppView>(),
        endpoint(GET, "/projects/{project}/apps/{app}/releases", READ, releases::list)
            .about("listReleases", "The releases of an app that are kept, oldest first")
            .answers::<Vec<ReleaseView>>(),
        endpoint(POST, "/projects/{project}/apps/{app}/rollback", DEPLOY, releases::rollback)
            .about("rollbackApp", "Make an earlier release the one that should run")
            .takes::<RollbackRequest>()
            .answers::<DeployResponse>(),
        endpoint(POST, "/projects/{project}/apps/{app}/promote", DEPLOY, releases::promote)
            .about("promoteApp", "Let the release whose canaries run take over")
            .answers::<DeployResponse>(),
        endpoint(GET, "/projects/{project}/apps/{app}/locations", READ, locations::of_app)
            .about("listAppLocations", "What each location has of an app, or should have")
            .answers::<Vec<AppLocationView>>(),
        endpoint(GET, "/projects/{project}/apps/{app}/explain", READ, apps::explain)
            .about("explainApp", "How much of an app runs, and why the rest does not")
            .answers::<AppExplanation>(),
    ]
}

fn of_instances() -> Vec<Endpoint> {
    vec![
        endpoint(GET, "/projects/{project}/instances", READ, instances::list)
            .about("listInstances", "The instances of a project, by their ids")
            .query::<AppName>("app", "only those of this app")
            .query::<LocationName>("location", "only those at this location")
            .query::<u32>("limit", "at most so many, up to 10,000")
            .query::<InstanceId>("after", "only those after this one: the last of the page before")
            .answers::<Vec<InstanceView>>(),
        endpoint(GET, "/projects/{project}/instances/{instance}", READ, instances::show)
            .about("showInstance", "One instance")
            .answers::<InstanceView>(),
        endpoint(GET, "/projects/{project}/instances/{instance}/explain", READ, instances::explain)
            .about("explainInstance", "Why an instance is where it is")
            .answers::<Explanation>(),
        endpoint(POST, "/projects/{project}/instances/{instance}/stop", DEPLOY, instances::stop)
            .about("stopInstance", "Stop an instance; another takes its place")
            .status(202),
        endpoint(GET, "/projects/{project}/instances/{instance}/logs", READ, instances::logs)
            .about("readLogs", "What an instance wrote")
            .query::<u32>("tail", "only so many of the last lines")
            .query::<Timestamp>("since", "only lines from then on, in milliseconds since 1970")
            .query::<bool>("follow", "go on with what it writes from now on")
            .streams::<LogLine>(),
        // Who runs commands inside reads what is secret there, and changes what it likes.
        endpoint(GET, "/projects/{project}/instances/{instance}/exec", DEPLOY, instances::exec)
            .about("execInInstance", "Run a command in an instance, over a WebSocket")
            .query::<String>("command", "the program; once more for each of its arguments")
            .query::<String>("env", "NAME=value; once for each variable")
            .query::<String>("user", "user[:group] instead of the instance's")
            .query::<String>("workdir", "instead of the instance's")
            .query::<bool>("stdin", "whether it reads what is sent")
            .query::<bool>("tty", "whether it runs in a terminal")
            .query::<u16>("columns", "the size of that")
            .query::<u16>("rows", "the size of that")
            .status(101),
        endpoint(GET, "/projects/{project}/instances/{instance}/attach", DEPLOY, instances::attach)
            .about("attachToInstance", "Be the client of an instance's program, over a WebSocket")
            .query::<bool>("stdin", "whether it reads what is sent")
            .query::<bool>("tty", "whether the client has a terminal")
            .query::<u16>("columns", "the size of that")
            .query::<u16>("rows", "the size of that")
            .status(101),
        // What listens inside may trust who can reach it.
        endpoint(
            GET,
            "/projects/{project}/instances/{instance}/port-forward",
            DEPLOY,
            instances::port_forward,
        )
        .about("connectToInstance", "A connection to a port of an instance, over Upgrade: tcp")
        .query::<Port>("port", "the port")
        .status(101),
        // Files of an instance are what it keeps secret, and what it runs.
        endpoint(GET, "/projects/{project}/instances/{instance}/archive", DEPLOY, archive::pack)
            .about("readFiles", "Files of an instance, as a tar archive")
            .query::<String>(
                "path",
                "what is read, under its name; with /. at the end its contents",
            )
            .answers_archive(),
        endpoint(PUT, "/projects/{project}/instances/{instance}/archive", DEPLOY, archive::unpack)
            .about("writeFiles", "Unpack a tar archive in an instance")
            .query::<String>("path", "the directory to unpack in")
            .query::<bool>(
                "cp",
                "the archive holds one tree, and the path is where cp would put it",
            )
            .query::<bool>("owners", "keep owners, by number; otherwise all belongs to root inside")
            .takes_archive(),
    ]
}

fn of_secrets() -> Vec<Endpoint> {
    vec![
        endpoint(GET, "/projects/{project}/secrets", READ, secrets::list)
            .about("listSecrets", "The secrets of a project, without their values")
            .answers::<Vec<SecretView>>(),
        endpoint(PUT, "/projects/{project}/secrets/{secret}", DEPLOY, secrets::set)
            .about("setSecret", "Keep a value as the next version of a secret")
            .takes::<SecretRequest>()
            .answers::<SecretView>(),
        endpoint(DELETE, "/projects/{project}/secrets/{secret}", DEPLOY, secrets::remove)
            .about("removeSecret", "Remove a secret that no release needs"),
        endpoint(POST, "/secrets/rotate-key", Everywhere, secrets::rotate)
            .about("rotateSecretKey", "Seal all secrets with a new key")
            .answers::<SecretKeyView>(),
    ]
}

fn of_prewarms() -> Vec<Endpoint> {
    vec![
        endpoint(GET, "/projects/{project}/prewarms", READ, prewarms::list)
            .about("listPrewarms", "The images of a project that should be on nodes beforehand")
            .answers::<Vec<PrewarmView>>(),
        endpoint(POST, "/projects/{project}/prewarms", DEPLOY, prewarms::set)
            .about("prewarmImage", "Bring an image to nodes before anything starts from it")
            .takes::<PrewarmRequest>()
            .answers::<PrewarmView>(),
        endpoint(GET, "/projects/{project}/prewarms/{digest}", READ, prewarms::show)
            .about("showPrewarm", "How far an image is on each node that should have it")
            .answers::<PrewarmStatus>(),
        endpoint(DELETE, "/projects/{project}/prewarms/{digest}", DEPLOY, prewarms::remove)
            .about("removePrewarm", "Need an image on nodes no longer"),
    ]
}

fn of_projects() -> Vec<Endpoint> {
    vec![
        endpoint(GET, "/projects/{project}/usage", READ, usage::list)
            .about("readUsage", "What the instances of a project use of what they may")
            .query::<AppName>("app", "only those of this app")
            .query::<InstanceId>("instance", "only this one")
            .answers::<Vec<UsageView>>(),
        endpoint(GET, "/projects/{project}/watch", READ, watch::watch)
            .about("watchProject", "The apps and instances of a project as they change")
            .query::<AppName>("app", "only this app and its instances")
            .query::<bool>("instances", "false leaves instances out")
            .streams::<ProjectView>()
            .tells::<(ProjectView, ProjectChange)>(
                "`state` with the first of these, then `change` with the second; Last-Event-ID resumes",
            ),
    ]
}

fn of_the_platform() -> Vec<Endpoint> {
    vec![
        // Those of the projects that the caller may look at.
        endpoint(GET, "/events", SomeProject(Role::Read), events::list)
            .about("listEvents", "What was changed, by whom and from where, the newest last")
            .query::<ProjectName>("project", "only those of this project")
            .query::<u32>("limit", "at most so many of the newest, up to 10,000")
            .answers::<Vec<EventView>>()
            .tells::<EventView>(
                "`event` with one of these, `missed` where older ones were forgotten; Last-Event-ID resumes",
            ),
        endpoint(GET, "/locations", SomeProject(Role::Read), locations::list)
            .about("listLocations", "The locations and their nodes")
            .query::<bool>("nodes", "false leaves nodes out")
            .answers::<Vec<LocationView>>(),
        endpoint(GET, "/locations/{location}", SomeProject(Role::Read), locations::show)
            .about("showLocation", "One location and its nodes")
            .answers::<LocationView>(),
        endpoint(GET, "/registry", SomeProject(Role::Read), registry::show)
            .about("showRegistry", "Where the registry is, and whether it answers")
            .answers::<RegistryView>(),
        endpoint(GET, "/whoami", SomeProject(Role::Read), whoami::show)
            .about("showCaller", "Whose token this is, and where it may look")
            .answers::<CallerView>(),
        // Hashes of tokens are in it, and secrets, sealed.
        endpoint(GET, "/store/backup", Everywhere, store::backup)
            .about("backUpStore", "What the control plane keeps, as a file for `longshore store restore`")
            .answers_bytes(),
        // Whose tokens these may be is looked at there.
        endpoint(GET, "/tokens", SomeProject(Role::Admin), tokens::list)
            .about("listTokens", "The tokens that the caller may administer")
            .answers::<Vec<TokenView>>(),
        endpoint(POST, "/tokens", SomeProject(Role::Admin), tokens::create)
            .about("createToken", "Make a token, whose text is shown this once")
            .takes::<TokenRequest>()
            .answers::<TokenCreated>()
            .status(201),
        endpoint(DELETE, "/tokens/{token}", SomeProject(Role::Admin), tokens::remove)
            .about("removeToken", "Remove a token; it opens nothing from then on"),
        endpoint(POST, "/join-tokens", Everywhere, join_tokens::create)
            .about("createJoinToken", "Make what lets one machine join a location, within an hour")
            .takes::<JoinTokenRequest>()
            .answers::<JoinTokenCreated>()
            .status(201),
    ]
}

/// What is wished of locations and nodes.
fn of_its_operators() -> Vec<Endpoint> {
    const LOCATION: &str = "/locations/{location}/cordon";
    const NODE: &str = "/locations/{location}/nodes/{node}/cordon";
    vec![
        endpoint(PUT, LOCATION, Everywhere, cordons::close_location)
            .about("cordonLocation", "Place nothing new at a location, or move away all it has")
            .takes::<CordonRequest>()
            .answers::<Cordon>(),
        endpoint(DELETE, LOCATION, Everywhere, cordons::open_location)
            .about("uncordonLocation", "Let new instances come to a location again"),
        endpoint(GET, "/locations/{location}/drain", Everywhere, cordons::preview_location)
            .about("previewLocationDrain", "What draining a location would move, and where")
            .answers::<Vec<AppMoveView>>(),
        endpoint(PUT, NODE, Everywhere, cordons::close_node)
            .about("cordonNode", "Place nothing new on a node, or move away all it has")
            .takes::<CordonRequest>()
            .answers::<Cordon>(),
        endpoint(DELETE, NODE, Everywhere, cordons::open_node)
            .about("uncordonNode", "Let new instances come to a node again"),
        endpoint(
            GET,
            "/locations/{location}/nodes/{node}/drain",
            Everywhere,
            cordons::preview_node,
        )
        .about("previewNodeDrain", "What draining a node would move, and where")
        .answers::<Vec<Move>>(),
        endpoint(GET, "/locations/{location}/nodes/{node}/images", Everywhere, images::of_node)
            .about(
                "listNodeImages",
                "The images of a node, how far each is there, and what keeps it",
            )
            .answers::<Vec<NodeImage>>(),
        endpoint(GET, "/locations/{location}/removal", Everywhere, locations::preview_removal)
            .about("previewLocationRemoval", "What removing a location would start elsewhere")
            .answers::<Vec<AppMoveView>>(),
        endpoint(
            GET,
            "/locations/{location}/nodes/{node}/removal",
            Everywhere,
            cordons::preview_node_removal,
        )
        .about("previewNodeRemoval", "What removing a node would start on others")
        .answers::<Vec<Move>>(),
        endpoint(DELETE, "/locations/{location}", Everywhere, locations::remove).about(
            "removeLocation",
            "Forget a location that joined and is empty or silent, and refuse it from then on",
        ),
        endpoint(DELETE, "/registry", Everywhere, registry::remove)
            .about("removeRegistry", "Forget the registry that joined, and refuse it from then on"),
        endpoint(DELETE, "/locations/{location}/nodes/{node}", Everywhere, cordons::remove_node)
            .about(
                "removeNode",
                "Forget a node that is drained or lost, and refuse it from then on",
            ),
    ]
}
