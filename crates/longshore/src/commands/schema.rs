//! `longshore schema`, and what `--json` of every verb writes.
//!
//! A command can only write data of a type that is in the list below ([`Stated`]), so there is none whose
//! shape is not stated.

use longshore_api::v1::{
    AppView, EventView, InstanceView, JoinTokenCreated, LocationView, PlanView, PrewarmStatus,
    PrewarmView, RegistryView, ReleaseView, SecretKeyView, SecretView, TokenCreated, TokenView,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;

use super::{
    cordon, deploy, drain, explain, image, logs, nodes, port_forward, removal, replay, stop, store,
    top,
};
use crate::failure::{Failure, Kind};
use crate::output::{Format, Output};
use crate::supervisor::Findings;

/// Write the JSON schema of what a verb writes with --json
///
/// The schemas of all verbs when none is named. Fields may be added in later versions.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The verb, such as `ps` or `image ls`
    #[arg(value_name = "VERB", num_args = 0..=2)]
    verb: Vec<String>,
}

/// Data whose shape is stated.
pub trait Stated: Serialize {}

/// Something that is no longer there.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Removed {
    /// Its name.
    pub removed: String,
}

type Describe = fn(&mut SchemaGenerator) -> Schema;

macro_rules! stated {
    ($($type:ty: $($verb:literal),+;)*) => {
        $(impl Stated for $type {})*
        /// Each verb with what describes its data.
        const VERBS: &[(&str, Describe)] =
            &[$($(($verb, SchemaGenerator::subschema_for::<$type>),)+)*];
    };
}

stated! {
    Findings: "doctor";
    Vec<AppView>: "apps";
    AppView: "scale";
    deploy::Outcome: "deploy", "rollback", "promote";
    PlanView: "plan";
    Vec<InstanceView>: "ps";
    Vec<ReleaseView>: "releases";
    stop::Stopped: "stop";
    removal::Removal: "locations rm", "nodes rm";
    Removed: "rm", "image rm", "secret rm", "token rm",
        "registry rm";
    RegistryView: "registry show";
    Vec<explain::Explained>: "explain";
    logs::Entry: "logs";
    Vec<top::Row>: "top";
    port_forward::Forwarded: "port-forward";
    Vec<EventView>: "events";
    EventView: "events --follow";
    Vec<LocationView>: "locations";
    Vec<nodes::Row>: "nodes";
    cordon::Closed: "cordon", "uncordon";
    drain::Drain: "drain";
    image::pack::Report: "image pack";
    image::push::Report: "image push";
    image::pull::Report: "image pull";
    image::rates::Report: "image rates";
    Vec<image::ls::Row>: "image ls";
    Vec<image::stocked::Row>: "image ls --node", "image ls --location";
    Vec<longshore_types::garbage::KeptManifest>: "image ls --why";
    image::inspect::Inspection: "image inspect";
    PrewarmStatus: "image prewarm";
    Vec<PrewarmView>: "image ls --wished";
    longshore_types::garbage::Garbage: "image gc";
    longshore_types::Retention: "image retention";
    SecretView: "secret set";
    Vec<SecretView>: "secret ls";
    SecretKeyView: "secret rotate-key";
    JoinTokenCreated: "join-token";
    replay::Replayed: "replay";
    store::Done: "store backup", "store restore", "store migrate";
    longshore_world::control::Status: "world status", "world cut", "world heal", "world slow";
    TokenCreated: "token create";
    Vec<TokenView>: "token ls";
}

/// Writes the schema.
pub fn run(options: &Options) -> Result<(), Failure> {
    let document = match options.verb.join(" ").as_str() {
        "" => all(),
        verb => {
            let found = VERBS.iter().find(|(name, _)| *name == verb);
            let (_, describe) = found.ok_or_else(|| {
                let known: Vec<_> = VERBS.iter().map(|(name, _)| *name).collect();
                Failure::new(Kind::Invalid, format!("{verb:?} writes no data with --json"))
                    .hint(format!("these do: {}", known.join(", ")))
            })?;
            let mut generator = SchemaGenerator::default();
            let mut schema = describe(&mut generator).to_value();
            schema["$defs"] = Value::Object(generator.take_definitions(true));
            schema
        }
    };
    Output::new(Format::Text).raw(format!("{document:#}\n").as_bytes())
}

/// Every verb with its schema.
fn all() -> Value {
    let mut generator = SchemaGenerator::default();
    let verbs = VERBS
        .iter()
        .map(|(verb, describe)| ((*verb).to_owned(), describe(&mut generator).to_value()));
    let verbs: serde_json::Map<String, Value> = verbs.collect();
    serde_json::json!({"verbs": verbs, "$defs": generator.take_definitions(true)})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::definition;

    /// Verbs that speak with the platform and write no data of their own.
    const WITHOUT_DATA: [&str; 4] = ["attach", "cp", "exec", "run"];

    fn with_json(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
        if command.get_arguments().any(|argument| argument.get_id() == "json") {
            found.insert(path.to_owned());
        }
        for verb in command.get_subcommands() {
            with_json(verb, format!("{path} {}", verb.get_name()).trim_start(), found);
        }
    }

    #[test]
    fn every_verb_with_json_states_what_it_writes() {
        let mut offered = BTreeSet::new();
        with_json(&definition(), "", &mut offered);
        let stated = VERBS.iter().map(|(verb, _)| *verb).filter(|verb| !verb.contains("--"));
        let known: BTreeSet<_> = stated.chain(WITHOUT_DATA).map(str::to_owned).collect();
        assert_eq!(offered, known);
    }

    #[test]
    fn what_is_stated_refers_to_nothing_else() {
        let document = all();
        for reference in document.to_string().split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap_or_default();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
