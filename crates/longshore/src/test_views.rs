//! Views of the API for tests to start from.

use longshore_api::links::ObservedInstance;
use longshore_api::v1::{AppView, InstanceView};
use longshore_types::{Generation, ProjectName, ReleaseNumber, Timestamp};

/// A pending instance of the app that `id` names.
pub fn instance(id: &str) -> InstanceView {
    let (app, _) = id.rsplit_once('-').unwrap();
    InstanceView {
        project: ProjectName::default(),
        app: app.parse().unwrap(),
        release: ReleaseNumber(1),
        location: "here".parse().unwrap(),
        node: "n1".parse().unwrap(),
        gpus: Default::default(),
        observed: ObservedInstance::pending(id.parse().unwrap(), Generation(1)),
        draining: false,
        is_command: false,
        created_at: Timestamp(0),
    }
}

/// An app of which one instance should run.
pub fn app(name: &str) -> AppView {
    AppView {
        project: ProjectName::default(),
        app: name.parse().unwrap(),
        release: ReleaseNumber(1),
        image: "default/web:1".to_owned(),
        count: 1,
        priority: Default::default(),
        ready: 0,
        outdated: 0,
        away: vec![],
        hosts: vec![format!("{name}.localhost").parse().unwrap()],
        urls: vec![format!("http://{name}.localhost:8080")],
        state: "rolling".to_owned(),
        canary: None,
        failed: None,
        latency: None,
        note: None,
        generation: Generation(1),
    }
}
