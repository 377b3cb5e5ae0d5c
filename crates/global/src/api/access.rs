//! Who may call what, how often, and under which conditions.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_types::token::{RegistryAction, Rights, Role};
use longshore_types::{AppName, ProjectName, Repository};

use super::idempotency::{key_of, once};
use super::precondition::Preconditions;
use super::{invalid, parse};
use crate::Plane;
use crate::events::{OnceMark, Who};
use crate::front::came_from;

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
    /// Whether a key makes the request happen once.
    pub by_key: bool,
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
    /// What must be so for a change to be made.
    pub expects: Preconditions,
    /// What tells that the request was carried out, when it is to be carried out once.
    pub once: Option<OnceMark>,
}

impl Caller {
    /// The same, as events have it.
    pub fn who(&self) -> Who {
        Who { token: Some(self.token.clone()), from: self.from, once: self.once.clone() }
    }

    /// Refuses who may not pull from a repository. The platform pulls with rights of its own, so those of who asks are
    /// looked at before it asks a registry for them.
    pub fn check_pull(&self, repository: &Repository) -> Result<(), Problem> {
        if self.rights.allows(repository, RegistryAction::Pull) {
            return Ok(());
        }
        let detail = format!("token {} has no right to pull from {repository}", self.token);
        Err(Problem::new(ProblemCode::Forbidden, detail))
    }
}

/// Lets a request pass when its token has the right, and has not asked too often.
pub(super) async fn authorise(
    State(guard): State<Guard>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let plane = &guard.plane;
    let from = came_from(&request, plane.passing_key.as_deref());
    let caller = caller(plane, request.headers(), from);
    let counted = match (&caller, from) {
        (Ok(caller), _) => plane.limits.count(&caller.token),
        (Err(_), Some(from)) => plane.limits.count_stranger(from.ip()),
        // A Unix socket, which only the machine's own may open.
        (Err(_), None) => Ok(()),
    };
    if let Err(too_many) = counted {
        return ([too_many.header()], Refusal(too_many.problem())).into_response();
    }
    let passed = caller.and_then(|caller| {
        let params = params.map_err(|error| invalid("(path)", "(given)", &error.body_text()))?;
        let project = params.iter().find(|(name, _)| *name == "project");
        check(guard.access, &caller, project.map(|(_, project)| project))?;
        Ok((caller, key_of(request.headers())?.filter(|_| guard.by_key)))
    });
    match passed {
        Err(refusal) => refusal.into_response(),
        Ok((caller, None)) => {
            let mut request = request;
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Ok((caller, Some(key))) => {
            let once = once(Arc::clone(plane), caller, &key, request, next);
            once.await.unwrap_or_else(IntoResponse::into_response)
        }
    }
}

fn caller(plane: &Plane, headers: &HeaderMap, from: Option<SocketAddr>) -> Result<Caller, Refusal> {
    let value = headers.get(header::AUTHORIZATION);
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
    let (token, rights) = (token.clone(), record.rights.clone());
    Ok(Caller { token, rights, from, expects: Preconditions::read(headers)?, once: None })
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
