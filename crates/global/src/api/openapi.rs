//! The OpenAPI document of the API, made from the list of endpoints and the types that they name.
//!
//! It is committed as `openapi/longshore.json`, so that a change of the API is seen in a review, and
//! served as `/v1/openapi.json`. Rejected: a macro on each handler, which would say paths and types a
//! second time.

use std::collections::BTreeMap;

use longshore_api::Problem;
use longshore_api::v1::HealthView;
use longshore_types::{
    AppName, Digest, InstanceId, LocationName, NodeName, ProjectName, SecretName,
};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Access;
use super::endpoint::{Describe, Endpoint};
use super::endpoints::endpoints;
use super::precondition::Preconditions;

/// What stands in braces in paths.
const PATH_PARAMETERS: [(&str, Describe); 8] = [
    ("project", SchemaGenerator::subschema_for::<ProjectName>),
    ("app", SchemaGenerator::subschema_for::<AppName>),
    ("instance", SchemaGenerator::subschema_for::<InstanceId>),
    ("location", SchemaGenerator::subschema_for::<LocationName>),
    ("node", SchemaGenerator::subschema_for::<NodeName>),
    ("secret", SchemaGenerator::subschema_for::<SecretName>),
    ("token", SchemaGenerator::subschema_for::<AppName>),
    ("digest", SchemaGenerator::subschema_for::<Digest>),
];

/// The whole document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for endpoint in endpoints() {
        let methods = paths.entry(format!("/v1{}", endpoint.path)).or_default();
        methods.insert(endpoint.method.0.to_lowercase(), operation(&endpoint, &mut schemas));
    }
    for (path, operation) in open(&mut schemas) {
        paths.entry(path.to_owned()).or_default().insert("get".to_owned(), operation);
    }
    let problem = schemas.subschema_for::<Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Longshore",
            "version": "1",
            "description": "Errors are problem documents (RFC 9457) with a stable `code`; their `type` leads to \
                a page about it. Fields may be added to answers at any time; those that are not known in \
                requests are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "responses": {"Problem": {
                "description": "What is wrong, or not possible now",
                "content": {"application/problem+json": {"schema": problem}},
            }},
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token as `longshore token create` makes it",
            }},
        },
    })
}

fn operation(endpoint: &Endpoint, schemas: &mut SchemaGenerator) -> Value {
    let about = &endpoint.about;
    let mut operation = json!({
        "operationId": about.id,
        "summary": about.summary,
        "description": needs(endpoint.access),
        "security": [{"token": []}],
        "parameters": parameters(endpoint, schemas),
        "responses": responses(endpoint, schemas),
    });
    if let Some((media_type, describe)) = about.takes {
        operation["requestBody"] = json!({
            "required": true,
            "content": {media_type: {"schema": describe(schemas)}},
        });
    }
    operation
}

/// Which token an endpoint asks for.
fn needs(access: Access) -> String {
    match access {
        Access::InProject(role) => format!("Needs the role `{role}` in the project."),
        Access::SomeProject(role) => format!("Needs the role `{role}` in some project."),
        Access::Everywhere => "Needs an administrator of the platform.".to_owned(),
    }
}

fn parameters(endpoint: &Endpoint, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let braced = |name: &str| endpoint.path.contains(&format!("{{{name}}}"));
    let in_path = PATH_PARAMETERS.iter().filter(|(name, _)| braced(name));
    let mut all: Vec<_> = in_path
        .map(|(name, describe)| {
            json!({"name": name, "in": "path", "required": true, "schema": describe(schemas)})
        })
        .collect();
    for parameter in &endpoint.about.query {
        let schema = match (parameter.schema)(schemas).to_value() {
            // Alone, without a value, it is true.
            flag if flag["type"] == "boolean" => json!({"enum": [true, false, ""]}),
            schema => schema,
        };
        let (name, what) = (parameter.name, parameter.what);
        all.push(json!({"name": name, "in": "query", "description": what, "schema": schema}));
    }
    for header in endpoint.headers() {
        let (name, what) = header;
        let text = match name {
            "Idempotency-Key" => json!({"type": "string", "pattern": "^[!-~]{1,128}$"}),
            _ => json!({"type": "string"}),
        };
        all.push(json!({"name": name, "in": "header", "description": what, "schema": text}));
    }
    all
}

impl Endpoint {
    /// The headers that change what it does.
    fn headers(&self) -> Vec<(&'static str, &'static str)> {
        let mut headers = Vec::new();
        if self.is_idempotent_by_key() {
            headers.push((
                "Idempotency-Key",
                "any text for this one change: when it comes again, the first answer is given again",
            ));
        }
        if Preconditions::apply_to(self.path, self.method.0) {
            headers
                .push(("If-Match", "the app's generation, in quotes, as its ETag says: only then"));
        }
        if self.about.answer.forms.iter().any(|form| form.media_type == "text/event-stream") {
            headers.push(("Last-Event-ID", "go on after this event"));
        }
        headers
    }
}

fn responses(endpoint: &Endpoint, schemas: &mut SchemaGenerator) -> Value {
    let answer = &endpoint.about.answer;
    let content: Map<String, Value> = answer
        .forms
        .iter()
        .map(|form| {
            let schema = (form.schema)(schemas);
            // Of a stream a schema can say what its items are, and that in an extension alone.
            let described = match form.what {
                "" => json!({"schema": schema}),
                what => {
                    json!({"schema": {"type": "string", "description": what}, "x-items": schema})
                }
            };
            (form.media_type.to_owned(), described)
        })
        .collect();
    let mut success = json!({"description": "Done"});
    if !content.is_empty() {
        success["content"] = content.into();
    }
    let problem = json!({"$ref": "#/components/responses/Problem"});
    json!({answer.status.to_string(): success, "4XX": problem, "5XX": problem})
}

/// What is answered to anyone.
fn open(schemas: &mut SchemaGenerator) -> [(&'static str, Value); 3] {
    let answer = |id: &str, summary: &str, media_type: &str, schema: Value| {
        json!({
            "operationId": id,
            "summary": summary,
            "security": [],
            "responses": {"200": {
                "description": "Done",
                "content": {media_type: {"schema": schema}},
            }},
        })
    };
    let health = schemas.subschema_for::<HealthView>().to_value();
    let text = || json!({"type": "string"});
    let mut page = answer("showErrorPage", "What a code means", "text/markdown", text());
    page["parameters"] =
        json!([{"name": "code", "in": "path", "required": true, "schema": text()}]);
    page["responses"]["404"] = json!({"$ref": "#/components/responses/Problem"});
    let document = json!({"type": "object"});
    [
        ("/v1/health", answer("showHealth", "Whether it answers", "application/json", health)),
        ("/v1/errors/{code}", page),
        ("/v1/openapi.json", answer("showOpenApi", "This document", "application/json", document)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes the test write the document in place of comparing it.
    const UPDATE: &str = "UPDATE_OPENAPI";

    #[test]
    fn the_committed_document_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/longshore.json");
        let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let differs = text.lines().zip(committed.lines()).find(|(new, old)| new != old);
        assert!(text == committed, "{differs:?}; {UPDATE}=1 writes openapi/longshore.json anew");
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_every_brace_a_parameter() {
        let document = document();
        let mut ids = std::collections::BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(!id.is_empty() && ids.insert(id.to_owned()), "{method} {path}: {id}");
                assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{id}");
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let in_path = parameters.filter(|parameter| parameter["in"] == "path").count();
                assert_eq!(in_path, path.matches('{').count(), "{method} {path}");
            }
        }
    }

    #[test]
    fn nothing_is_referred_to_that_is_not_there() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
