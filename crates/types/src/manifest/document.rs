//! What a document may look like that becomes a manifest, as a JSON schema for editors and generators.
//!
//! The check itself is [`Manifest::from_document`](super::Manifest::from_document), which says more and
//! says it better; a test keeps both to the same keys.

use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../../../openapi/manifest.schema.json");

/// The schema of a manifest as it is written.
pub fn schema(_: &mut SchemaGenerator) -> Schema {
    let text = inlined();
    Schema::try_from(text).expect("an object is a schema")
}

/// The schema with what it refers to in its place, so that it may stand inside of another document.
fn inlined() -> Value {
    let mut schema: Value = serde_json::from_str(SCHEMA).expect("the committed schema is JSON");
    let definitions = schema["$defs"].clone();
    inline(&mut schema, &definitions);
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$defs");
        schema.remove("$schema");
    }
    schema
}

fn inline(value: &mut Value, definitions: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.remove("$ref") {
                let name = reference.trim_start_matches("#/$defs/");
                for (key, part) in definitions[name].as_object().into_iter().flatten() {
                    map.insert(key.clone(), part.clone());
                }
            }
            map.values_mut().for_each(|part| inline(part, definitions));
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| inline(part, definitions)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::Manifest;

    /// The keys that the parser knows in a table, by what it says of one that it does not.
    fn known_keys(table: Option<&str>) -> BTreeSet<String> {
        let strange = json!({"zzzzzzzzzzzzzzzz": 1});
        let document = match table.map(|table| table.split_once('.').ok_or(table)) {
            Some(Err(table)) => json!({"app": "a", "image": "a", table: strange}),
            Some(Ok((table, inner))) => json!({"app": "a", "image": "a", table: {inner: strange}}),
            None => strange,
        };
        let problems = Manifest::from_document(&document).unwrap_err();
        let keys =
            problems.iter().find_map(|p| p.allowed.strip_prefix("unknown key; known keys: "));
        keys.unwrap().split(", ").map(str::to_owned).collect()
    }

    fn keys_of(schema: &Value) -> BTreeSet<String> {
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_schema_has_the_keys_of_the_parser_and_no_others() {
        let schema = inlined();
        assert_eq!(keys_of(&schema), known_keys(None));
        for (table, part) in schema["properties"].as_object().unwrap() {
            if part["additionalProperties"] == false {
                assert_eq!(keys_of(part), known_keys(Some(table)), "{table}");
            }
        }
        let gpu = &schema["properties"]["resources"]["properties"]["gpu"];
        assert_eq!(keys_of(gpu), known_keys(Some("resources.gpu")));
        assert!(!schema.to_string().contains("$ref"));
    }
}
