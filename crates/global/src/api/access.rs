//! Who may call what.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header;
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_types::token::{Rights, Role};
use longshore_types::{AppName, ProjectName};

use super::parse;
use crate::Plane;
use crate::events::Who;

/// Whose tokens may call an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Those with at least this role in the project of the path.
    InProject(Role),
    /// Those with at least this role in any project.
    SomeProject(Role),
    /// Those of the platform's administrators.
    Everywhere,
}

/// What guards one endpoint.
#[derive(Clone)]
pub(super) struct Guard {
    pub plane: Arc<Plane>,
    pub access: Access,
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The name of the token.
    pub token: AppName,
    /// What its bearer may do.
    pub rights: Rights,
    /// The other end of the connection.
    pub from: Option<SocketAddr>,
}

impl Caller {
    /// The same, as events have it.
    pub fn who(&self) -> Who {
        Who { token: Some(self.token.clone()), from: self.from }
    }
}

/// Lets a request pass when its token has the right.
pub(super) async fn authorise(
    State(guard): State<Guard>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match caller(&guard.plane, &request) {
        Ok(caller) => caller,
        Err(refusal) => return refusal.into_response(),
    };
    let project = params.iter().find(|(name, _)| *name == "project").map(|(_, project)| project);
    if let Err(refusal) = check(guard.access, &caller, project) {
        return refusal.into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn caller(plane: &Plane, request: &Request) -> Result<Caller, Refusal> {
    let value = request.headers().get(header::AUTHORIZATION);
    let token = value.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let unknown = |detail: &str| Refusal(Problem::new(ProblemCode::Unauthenticated, detail));
    let token = token.ok_or_else(|| {
        unknown(
            "send Authorization: Bearer and a token; the first one is in the file admin-token of the data directory",
        )
    })?;
    let hash = crate::tokens::hash(token);
    let catalog = plane.catalog();
    let found = catalog.tokens.iter().find(|(_, record)| record.hash == hash);
    let (token, record) =
        found.ok_or_else(|| unknown("this token is not known here; it may have been removed"))?;
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    Ok(Caller { token: token.clone(), rights: record.rights.clone(), from })
}

fn check(access: Access, caller: &Caller, project: Option<&str>) -> Result<(), Refusal> {
    let Caller { token, rights, .. } = caller;
    let forbidden = |detail: String| Refusal(Problem::new(ProblemCode::Forbidden, detail));
    let needs = |needed: Role, found: Option<Role>, place: &str| {
        if found.is_some_and(|found| found >= needed) {
            return Ok(());
        }
        let has = found.map_or("none", Role::as_str);
        Err(forbidden(format!("token {token} needs the role {needed} {place}; it has {has}")))
    };
    match access {
        Access::InProject(needed) => {
            let project: ProjectName = parse("project", project.unwrap_or_default())?;
            needs(needed, rights.role_in(&project), &format!("in project {project}"))
        }
        Access::SomeProject(needed) => needs(needed, rights.role_anywhere(), "in some project"),
        Access::Everywhere if rights.admin => Ok(()),
        Access::Everywhere => {
            Err(forbidden(format!("token {token} is not of an administrator of the platform")))
        }
    }
}
