//! What an endpoint is: who may call it, what does it, and what is said of it in the OpenAPI document.
//!
//! One value holds all three, so that nothing is served that is not described and guarded.

use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use longshore_api::links::TAR;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::Access;
use crate::Plane;
use std::sync::Arc;

/// A method by its name, and as the router has it.
pub(super) type Verb = (&'static str, MethodFilter);

pub(super) const GET: Verb = ("GET", MethodFilter::GET);
pub(super) const PUT: Verb = ("PUT", MethodFilter::PUT);
pub(super) const POST: Verb = ("POST", MethodFilter::POST);
pub(super) const DELETE: Verb = ("DELETE", MethodFilter::DELETE);

/// Describes a type; what it refers to goes into the generator.
pub(super) type Describe = fn(&mut SchemaGenerator) -> Schema;

/// One method of one path below `/v1`.
pub(super) struct Endpoint {
    pub method: Verb,
    pub path: &'static str,
    pub access: Access,
    pub handler: MethodRouter<Arc<Plane>>,
    pub about: About,
}

/// What users are told of an endpoint.
pub(super) struct About {
    /// A name for functions that are generated.
    pub id: &'static str,
    /// One line.
    pub summary: &'static str,
    pub query: Vec<Parameter>,
    pub takes: Option<(&'static str, Describe)>,
    pub answer: Answer,
}

/// A parameter in a query, which may always be left out.
pub(super) struct Parameter {
    pub name: &'static str,
    pub what: &'static str,
    pub schema: Describe,
}

/// What is answered when all is well.
pub(super) struct Answer {
    pub status: u16,
    pub forms: Vec<Form>,
}

/// A form of an answer.
pub(super) struct Form {
    pub media_type: &'static str,
    pub schema: Describe,
    /// What a stream says of its items.
    pub what: &'static str,
}

/// An archive, as a document can say it.
fn archive(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "contentMediaType": TAR})
}

/// Bytes, likewise.
fn bytes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "contentMediaType": "application/octet-stream"})
}

pub(super) fn endpoint<H: Handler<T, Arc<Plane>>, T: 'static>(
    method: Verb,
    path: &'static str,
    access: Access,
    handler: H,
) -> Endpoint {
    let answer = Answer { status: 204, forms: Vec::new() };
    let about = About { id: "", summary: "", query: Vec::new(), takes: None, answer };
    Endpoint { method, path, access, handler: on(method.1, handler), about }
}

impl Endpoint {
    /// Names and explains it.
    pub fn about(mut self, id: &'static str, summary: &'static str) -> Self {
        (self.about.id, self.about.summary) = (id, summary);
        self
    }

    /// Takes a body.
    pub fn takes<T: JsonSchema>(mut self) -> Self {
        self.about.takes = Some(("application/json", SchemaGenerator::subschema_for::<T>));
        self
    }

    /// Takes an archive, of any size.
    pub fn takes_archive(mut self) -> Self {
        self.about.takes = Some((TAR, archive));
        self
    }

    /// Answers with an archive.
    pub fn answers_archive(mut self) -> Self {
        self.about.answer.forms.push(Form { media_type: TAR, schema: archive, what: "" });
        self.status(200)
    }

    /// Answers with bytes that only their reader understands.
    pub fn answers_bytes(mut self) -> Self {
        let (media_type, what) = ("application/octet-stream", "");
        self.about.answer.forms.push(Form { media_type, schema: bytes, what });
        self.status(200)
    }

    /// Takes a parameter in its query.
    pub fn query<T: JsonSchema>(mut self, name: &'static str, what: &'static str) -> Self {
        let schema = SchemaGenerator::subschema_for::<T>;
        self.about.query.push(Parameter { name, what, schema });
        self
    }

    /// Answers in JSON.
    pub fn answers<T: JsonSchema>(self) -> Self {
        self.form::<T>("application/json", "").status(200)
    }

    /// Answers with JSON lines, each of this type.
    pub fn streams<T: JsonSchema>(self) -> Self {
        self.form::<T>("application/jsonl", "one value a line; blank lines are heartbeats")
            .status(200)
    }

    /// Answers with server-sent events to who accepts them.
    pub fn tells<T: JsonSchema>(self, what: &'static str) -> Self {
        self.form::<T>("text/event-stream", what)
    }

    fn form<T: JsonSchema>(mut self, media_type: &'static str, what: &'static str) -> Self {
        let schema = SchemaGenerator::subschema_for::<T>;
        self.about.answer.forms.push(Form { media_type, schema, what });
        self
    }

    /// The status of an answer, where it is not the usual one.
    pub fn status(mut self, status: u16) -> Self {
        self.about.answer.status = status;
        self
    }
}
