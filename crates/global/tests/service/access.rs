//! Every endpoint, called with a token of every role.

use http::Method;
use longshore_api::v1::{
    AppView, DeployRequest, DeployResponse, EventView, ScaleRequest, SecretRequest, SecretView,
    TokenCreated, TokenRequest, TokenView,
};
use longshore_api::{Problem, ProblemCode};
use longshore_global::Access::{self, Everywhere, InProject, SomeProject};
use longshore_link::{CallError, Client};
use longshore_types::SecretValue;
use longshore_types::token::{ProjectRole, RegistryAction, RegistryRight, Rights, Role};
use serde_json::json;

use crate::plane::*;

/// What is said in the code is said here once more: a change of either has to be meant.
const EXPECTED: &[(&str, &str, Access)] = &[
    ("GET", "/projects/{project}/apps", InProject(Role::Read)),
    ("GET", "/projects/{project}/apps/{app}", InProject(Role::Read)),
    ("PUT", "/projects/{project}/apps/{app}", InProject(Role::Deploy)),
    ("DELETE", "/projects/{project}/apps/{app}", InProject(Role::Deploy)),
    ("POST", "/projects/{project}/apps/{app}/plan", InProject(Role::Read)),
    ("POST", "/projects/{project}/apps/{app}/scale", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/apps/{app}/releases", InProject(Role::Read)),
    ("POST", "/projects/{project}/apps/{app}/rollback", InProject(Role::Deploy)),
    ("POST", "/projects/{project}/apps/{app}/promote", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/apps/{app}/locations", InProject(Role::Read)),
    ("GET", "/projects/{project}/apps/{app}/explain", InProject(Role::Read)),
    ("GET", "/projects/{project}/instances", InProject(Role::Read)),
    ("GET", "/projects/{project}/instances/{instance}", InProject(Role::Read)),
    ("GET", "/projects/{project}/instances/{instance}/explain", InProject(Role::Read)),
    ("POST", "/projects/{project}/instances/{instance}/stop", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/instances/{instance}/logs", InProject(Role::Read)),
    ("GET", "/projects/{project}/instances/{instance}/exec", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/instances/{instance}/attach", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/instances/{instance}/port-forward", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/instances/{instance}/archive", InProject(Role::Deploy)),
    ("PUT", "/projects/{project}/instances/{instance}/archive", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/secrets", InProject(Role::Read)),
    ("PUT", "/projects/{project}/secrets/{secret}", InProject(Role::Deploy)),
    ("DELETE", "/projects/{project}/secrets/{secret}", InProject(Role::Deploy)),
    ("POST", "/secrets/rotate-key", Everywhere),
    ("GET", "/projects/{project}/prewarms", InProject(Role::Read)),
    ("POST", "/projects/{project}/prewarms", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/prewarms/{digest}", InProject(Role::Read)),
    ("DELETE", "/projects/{project}/prewarms/{digest}", InProject(Role::Deploy)),
    ("GET", "/projects/{project}/usage", InProject(Role::Read)),
    ("GET", "/projects/{project}/watch", InProject(Role::Read)),
    ("GET", "/events", SomeProject(Role::Read)),
    ("GET", "/locations", SomeProject(Role::Read)),
    ("GET", "/locations/{location}", SomeProject(Role::Read)),
    ("GET", "/registry", SomeProject(Role::Read)),
    ("GET", "/whoami", SomeProject(Role::Read)),
    ("GET", "/store/backup", Everywhere),
    ("GET", "/tokens", SomeProject(Role::Admin)),
    ("POST", "/tokens", SomeProject(Role::Admin)),
    ("DELETE", "/tokens/{token}", SomeProject(Role::Admin)),
    ("POST", "/join-tokens", Everywhere),
    ("PUT", "/locations/{location}/cordon", Everywhere),
    ("DELETE", "/locations/{location}/cordon", Everywhere),
    ("GET", "/locations/{location}/drain", Everywhere),
    ("PUT", "/locations/{location}/nodes/{node}/cordon", Everywhere),
    ("DELETE", "/locations/{location}/nodes/{node}/cordon", Everywhere),
    ("GET", "/locations/{location}/nodes/{node}/drain", Everywhere),
    ("GET", "/locations/{location}/nodes/{node}/images", Everywhere),
    ("GET", "/locations/{location}/removal", Everywhere),
    ("GET", "/locations/{location}/nodes/{node}/removal", Everywhere),
    ("DELETE", "/locations/{location}", Everywhere),
    ("DELETE", "/registry", Everywhere),
    ("DELETE", "/locations/{location}/nodes/{node}", Everywhere),
];

pub fn rights(project: Option<&str>, role: Role) -> Rights {
    let project = project.map(|name| name.parse().unwrap());
    Rights { roles: vec![ProjectRole { project, role }], ..Rights::default() }
}

impl Plane {
    /// A client with a new token.
    pub async fn with(&self, name: &str, rights: Rights) -> Client {
        let request = TokenRequest { name: name.parse().unwrap(), rights };
        let made: TokenCreated =
            self.user.call(Method::POST, "/v1/tokens", Some(&request)).await.unwrap();
        Client::new(self.user.endpoint().clone()).with_token(made.token)
    }
}

/// Whether a call was let through, whatever became of it then.
async fn passes(client: &Client, method: &str, path: &str) -> Result<bool, Problem> {
    let path = path
        .replace("{project}", "default")
        .replace("{app}", "web")
        .replace("{instance}", "web-00000001")
        .replace("{location}", "ams")
        .replace("{node}", "n1")
        .replace("{secret}", "nobody")
        .replace("{token}", "nobody");
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    match client.send(method, &format!("/v1{path}"), Some(&json!({}))).await {
        Ok(_) => Ok(true),
        Err(CallError::Refused(problem)) => match problem.code {
            ProblemCode::Forbidden => Ok(false),
            // Strangers are many here, and may not ask often.
            ProblemCode::Unauthenticated | ProblemCode::TooManyRequests => Err(problem),
            _ => Ok(true),
        },
        Err(error) => panic!("{path}: {error}"),
    }
}

#[tokio::test]
async fn every_endpoint_lets_every_role_do_what_it_may_and_no_more() {
    assert_eq!(longshore_global::accesses(), EXPECTED);
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let right =
        RegistryRight { repositories: "*".to_owned(), actions: vec![RegistryAction::Delete] };
    let bearers = [
        ("registry", Rights { registry: vec![right], ..Rights::default() }),
        ("read", rights(Some("default"), Role::Read)),
        ("deploy", rights(Some("default"), Role::Deploy)),
        ("admin-here", rights(Some("default"), Role::Admin)),
        ("read-all", rights(None, Role::Read)),
        ("admin-elsewhere", rights(Some("other"), Role::Admin)),
        ("platform", Rights { admin: true, ..Rights::default() }),
    ];
    let strangers = [
        Client::new(plane.user.endpoint().clone()),
        Client::new(plane.user.endpoint().clone()).with_token("lsh_guessed"),
    ];
    for (method, path, _) in EXPECTED {
        for stranger in &strangers {
            assert!(passes(stranger, method, path).await.is_err(), "{method} {path}");
        }
    }
    let default = "default".parse().unwrap();
    for (name, rights) in bearers {
        let client = plane.with(name, rights.clone()).await;
        for (method, path, access) in EXPECTED {
            let expected = match access {
                InProject(needed) => rights.role_in(&default) >= Some(*needed),
                SomeProject(needed) => rights.role_anywhere() >= Some(*needed),
                Everywhere => rights.admin,
            };
            let passed = passes(&client, method, path).await.unwrap();
            assert_eq!(passed, expected, "{name}: {method} {path}");
        }
    }
    plane.stop().await;
}

#[tokio::test]
async fn an_administrator_of_a_project_makes_tokens_for_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let mine = plane.with("mine", rights(Some("mine"), Role::Admin)).await;
    let make = async |name: &str, rights: Rights| {
        let request = TokenRequest { name: name.parse().unwrap(), rights };
        mine.call::<_, TokenCreated>(Method::POST, "/v1/tokens", Some(&request)).await
    };
    make("ci", rights(Some("mine"), Role::Deploy)).await.unwrap();
    for more in [
        rights(Some("default"), Role::Read),
        rights(None, Role::Read),
        Rights { admin: true, ..Rights::default() },
    ] {
        let refused = make("more", more).await.unwrap_err();
        assert!(matches!(&refused, CallError::Refused(p) if p.code == ProblemCode::Forbidden));
    }
    plane.with("theirs", rights(Some("theirs"), Role::Read)).await;
    let listed: Vec<TokenView> = mine.get("/v1/tokens").await.unwrap();
    let names: Vec<_> = listed.iter().map(|token| token.name.as_str()).collect();
    assert_eq!(names, ["ci", "mine"]);
    for (name, code) in [
        ("theirs", Some(ProblemCode::Forbidden)),
        ("admin", Some(ProblemCode::Forbidden)),
        ("ci", None),
    ] {
        let path = format!("/v1/tokens/{name}");
        let removed = mine.call::<(), ()>(Method::DELETE, &path, None).await;
        let refused = match removed {
            Ok(()) => None,
            Err(CallError::Refused(problem)) => Some(problem.code),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(refused, code, "{name}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn nobody_runs_an_image_that_they_may_not_pull() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let mine = plane.with("mine", rights(Some("mine"), Role::Deploy)).await;
    let mut manifest = web();
    manifest["project"] = json!("mine");
    let request = DeployRequest { manifest };
    let path = "/v1/projects/mine/apps/web";
    let plan = format!("{path}/plan");
    for (method, path) in [(Method::PUT, path), (Method::POST, plan.as_str())] {
        let refused = mine.send(method, path, Some(&request)).await.unwrap_err();
        let why = "token mine has no right to pull from default/web";
        assert!(matches!(&refused, CallError::Refused(p) if p.code == ProblemCode::Forbidden));
        assert!(refused.to_string().contains(why), "{refused}");
    }
    plane.user.call::<_, DeployResponse>(Method::PUT, path, Some(&request)).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn every_change_is_told_with_who_made_it_to_those_who_may_know() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let deployer = plane.with("ci", rights(Some("default"), Role::Deploy)).await;
    let elsewhere = plane.with("other", rights(Some("other"), Role::Admin)).await;
    let request = DeployRequest { manifest: web() };
    let path = "/v1/projects/default/apps/web";
    for _ in 0..2 {
        // The second changes nothing.
        deployer.call::<_, DeployResponse>(Method::PUT, path, Some(&request)).await.unwrap();
    }
    let scale = format!("{path}/scale");
    let count = ScaleRequest { count: 5 };
    plane.user.call::<_, AppView>(Method::POST, &scale, Some(&count)).await.unwrap();
    let secret = SecretRequest { value: SecretValue::new(b"hidden".to_vec()) };
    let secret_path = "/v1/projects/default/secrets/db";
    deployer.call::<_, SecretView>(Method::PUT, secret_path, Some(&secret)).await.unwrap();
    deployer.call::<(), ()>(Method::DELETE, secret_path, None).await.unwrap();
    // What is refused is no change.
    assert!(deployer.call::<(), ()>(Method::DELETE, secret_path, None).await.is_err());
    plane.user.call::<(), ()>(Method::DELETE, path, None).await.unwrap();

    let told = async |client: &Client, query: &str| -> Vec<String> {
        let events: Vec<EventView> = client.get(&format!("/v1/events{query}")).await.unwrap();
        let from_here = |event: &EventView| event.from.as_ref().unwrap().starts_with("127.0.0.1:");
        assert!(events.iter().all(from_here));
        let line =
            |event: EventView| format!("{} {} {}", event.token.unwrap(), event.what, event.subject);
        events.into_iter().map(line).collect()
    };
    let changes = [
        "ci deploy web r1",
        "admin scale web from 2 to 5",
        "ci secret set db v1",
        "ci secret rm db",
        "admin rm web",
    ];
    assert_eq!(told(&deployer, "").await, changes);
    let platforms = ["admin token create ci", "admin token create other"];
    assert_eq!(told(&plane.user, "").await, [&platforms[..], &changes[..]].concat());
    assert_eq!(told(&plane.user, "?project=default&limit=2").await, changes[3..]);
    assert_eq!(told(&elsewhere, "").await, [""; 0]);
    assert!(plane.user.get::<Vec<EventView>>("/v1/events?limit=0").await.is_err());
    plane.stop().await;
}
