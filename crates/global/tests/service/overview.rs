//! What gives an overview without every instance: counts by location and by app.

use longshore_api::ProblemCode;
use longshore_api::links::{LocationReport, NodeSummary, ReportTaken, Shortfall, Staying};
use longshore_api::v1::{AppLocationView, CallerView, LocationView};
use longshore_link::{CallError, now};
use longshore_types::token::{RegistryAction, RegistryRight, Rights, Role};
use longshore_types::{ByteCount, Capacity, Decision, InstancePhase, MilliCpu};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::access::rights;
use crate::plane::*;

fn node(name: &str, reachable: bool) -> NodeSummary {
    let gib = |n| Capacity {
        cpu: MilliCpu(1000 * u32::try_from(n).unwrap()),
        memory: ByteCount::gib(n),
        disk: ByteCount::gib(n),
    };
    NodeSummary {
        node: name.parse().unwrap(),
        reachable,
        reported_at: now(),
        capacity: gib(8),
        promised: gib(1),
        leaving: Default::default(),
        yielding: Vec::new(),
        gpus: Vec::new(),
        reached: Vec::new(),
        version: "1".to_owned(),
        runtimes: Vec::new(),
        image_mount: None,
        traits: Default::default(),
        lost: false,
        instances: 0,
        cordon: None,
        drained: false,
    }
}

fn shortfall(project: &str) -> Shortfall {
    let decision =
        Decision { at: now(), chosen: None, why: "no room".to_owned(), candidates: Vec::new() };
    let app = "big".parse().unwrap();
    let project = project.parse().unwrap();
    Shortfall { project, app, missing: 1, decision, room: Default::default() }
}

fn staying(project: &str) -> Staying {
    Staying {
        node: "n1".parse().unwrap(),
        instance: "big-00000001".parse().unwrap(),
        project: project.parse().unwrap(),
        app: "big".parse().unwrap(),
        why: "no node has room".to_owned(),
        under_way: false,
    }
}

#[tokio::test]
async fn a_location_is_counted_and_shown_with_what_the_caller_may_know() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let allotment = &set.allotments[0];
    let mut starting = healthy(allotment, "web-00000002");
    starting.observed.phase = InstancePhase::Starting;
    let report = LocationReport {
        number: 0,
        since: None,
        gone: Vec::new(),
        location: "ams".parse().unwrap(),
        coordinates: "52.37,4.9".parse().ok(),
        traits: Default::default(),
        joining: None,
        peering: None,
        round_trip_micros: [("sin".parse().unwrap(), 160_000)].into(),
        demand: vec![],
        gate: Some("unix:/nowhere".to_owned()),
        epoch: set.epoch,
        acknowledged: set.generation,
        at: now(),
        nodes: vec![node("n1", true), node("n2", false)],
        instances: vec![healthy(allotment, "web-00000001").into(), starting.into()],
        shortfalls: vec![shortfall("default"), shortfall("other")],
        staying: vec![staying("default"), staying("other")],
        strays: vec![],
        location_epoch: Default::default(),
        node_keys: None,
    };
    plane.send(&report).await;

    let [all]: [LocationView; 1] = plane.user.get("/v1/locations").await.unwrap();
    assert_eq!(all.coordinates, report.coordinates);
    assert_eq!(all.round_trip_micros, report.round_trip_micros);
    assert_eq!((all.instances, all.ready), (2, 1));
    assert_eq!((all.n_nodes, all.n_reachable, all.nodes.len()), (2, 1, 2));
    assert_eq!((all.capacity.memory, all.promised.cpu), (ByteCount::gib(16), MilliCpu(2000)));
    assert_eq!(all.shortfalls, report.shortfalls);
    assert_eq!(all.staying, report.staying);
    let [lean]: [LocationView; 1] = plane.user.get("/v1/locations?nodes=false").await.unwrap();
    assert_eq!(lean, LocationView { nodes: Vec::new(), ..all.clone() });
    assert_eq!(plane.user.get::<LocationView>("/v1/locations/ams").await.unwrap(), all);
    let missing = plane.user.get::<LocationView>("/v1/locations/sin").await.unwrap_err();
    assert!(matches!(&missing, CallError::Refused(p) if p.code == ProblemCode::NotFound));

    // A neighbour's app that finds no room is nobody else's business.
    let mine = plane.with("mine", rights(Some("default"), Role::Read)).await;
    for path in ["/v1/locations/ams", "/v1/locations"] {
        let seen: serde_json::Value = mine.get(path).await.unwrap();
        let text = seen.to_string();
        assert!(text.contains("\"project\":\"default\"") && !text.contains("other"), "{text}");
    }

    let path = "/v1/projects/default/apps/web/locations";
    let [here]: [AppLocationView; 1] = plane.user.get(path).await.unwrap();
    assert_eq!((here.location.as_str(), here.wanted), ("ams", 2));
    assert_eq!((here.instances, here.ready), (2, 1));
    plane.stop().await;
}

#[tokio::test]
async fn a_caller_is_told_who_it_is_and_where_it_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.deploy(web()).await.unwrap();
    let admin: CallerView = plane.user.get("/v1/whoami").await.unwrap();
    assert_eq!((admin.token.as_str(), admin.rights.admin), ("admin", true));
    assert_eq!(admin.projects, ["default".parse().unwrap()]);
    let theirs = plane.with("theirs", rights(Some("theirs"), Role::Read)).await;
    let caller: CallerView = theirs.get("/v1/whoami").await.unwrap();
    assert_eq!(caller.projects, ["theirs".parse().unwrap()]);
    let right = RegistryRight { repositories: "*".to_owned(), actions: vec![RegistryAction::Pull] };
    let pull = plane.with("pull", Rights { registry: vec![right], ..Rights::default() }).await;
    let refused = pull.get::<CallerView>("/v1/whoami").await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(p) if p.code == ProblemCode::Forbidden));
    plane.stop().await;
}

/// The head of an answer to a request with these further headers.
async fn head(plane: &Plane, path: &str, headers: &str) -> String {
    let longshore_link::Endpoint::Tcp(address) = plane.user.endpoint() else {
        panic!("the API listens on TCP");
    };
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin-token\r\n\
         accept-encoding: gzip\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

#[tokio::test]
async fn answers_are_compressed_and_streams_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let ids = (0..20).map(|number| format!("web-{number:08x}"));
    let reported = ids.map(|id| healthy(&set.allotments[0], &id)).collect();
    plane.report(set.generation, reported).await;
    let is_packed = async |path: &str, headers: &str| {
        let head = head(&plane, path, headers).await;
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        head.contains("content-encoding: gzip")
    };
    assert!(is_packed("/v1/projects/default/instances", "").await);
    assert!(!is_packed("/v1/health", "").await, "it is tiny");
    assert!(!is_packed("/v1/projects/default/watch", "").await);
    let events = "accept: text/event-stream\r\n";
    assert!(!is_packed("/v1/projects/default/watch", events).await);
    plane.stop().await;
}

/// What a location whose reports have numbers is answered.
async fn report_of_number(
    plane: &Plane,
    number: u64,
    since: Option<u64>,
    report: LocationReport,
) -> Option<ReportTaken> {
    let report = LocationReport { number, since, ..report };
    let changes = if since.is_some() { "/changes" } else { "" };
    let path = format!("/link/locations/{}/report{changes}", report.location);
    plane.link.call(http::Method::POST, &path, Some(&report)).await.unwrap()
}

#[tokio::test]
async fn a_location_says_all_of_its_instances_once_and_then_those_that_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let ids = ["web-00000001", "web-00000002"];
    let says = |ids: &[&str]| {
        let instances = ids.iter().map(|id| healthy(&set.allotments[0], id)).collect();
        report_of("ams", set.generation, instances, vec![])
    };
    let taken = |number| Some(ReportTaken { number });
    assert_eq!(report_of_number(&plane, 0, None, says(&ids)).await, None, "as it always was");
    assert_eq!(report_of_number(&plane, 7, None, says(&ids)).await, taken(Some(7)));
    plane.app_when(|app| app.ready == 2).await;
    let gone = LocationReport { gone: vec![ids[0].parse().unwrap()], ..says(&[]) };
    assert_eq!(report_of_number(&plane, 9, Some(8), gone.clone()).await, taken(None));
    assert_eq!(plane.app().await.ready, 2, "it is of what nobody knows");
    assert_eq!(report_of_number(&plane, 9, Some(7), gone).await, taken(Some(9)));
    plane.app_when(|app| app.ready == 1).await;
    let more = says(&ids[..1]);
    assert_eq!(report_of_number(&plane, 10, Some(9), more).await, taken(Some(10)));
    plane.app_when(|app| app.ready == 2).await;
    plane.stop().await;
    // Another process knows nothing of it.
    let plane = Plane::start(dir.path()).await;
    assert_eq!(report_of_number(&plane, 11, Some(10), says(&[])).await, taken(None));
    plane.stop().await;
}
