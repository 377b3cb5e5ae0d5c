//! Where the users of apps are, as ingresses count it.

use longshore_types::{AppName, ProjectName};
use serde::{Deserialize, Serialize};

/// What an ingress tells its location every few seconds: the requests of users that came in since it did so last,
/// wherever they were answered. Those that other locations passed on are not among them. A message that is lost is
/// not sent again: what it counted would come late and count for now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// One per app that had any.
    pub apps: Vec<AppRequests>,
}

/// How many requests there were for an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRequests {
    /// The owner.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many.
    pub requests: u64,
}

/// How many requests for an app come in at a location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDemand {
    /// The owner.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many an hour, as an average that counts the last minutes most.
    pub requests_per_hour: u64,
}
