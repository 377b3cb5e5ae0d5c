//! The table `[resources.gpu]`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::table::Table;
use crate::{ByteCount, GpuModel, GpuNeed};

/// What it says, where it is.
pub(super) fn of(table: &mut Table<'_>) -> Option<GpuNeed> {
    table.refuse_unknown(&["count", "memory", "models"]);
    table.map?;
    let memory: Option<ByteCount> = table.text("memory");
    if let Some(memory) = memory.filter(|memory| *memory < GpuNeed::LEAST_MEMORY) {
        let allowed = "at least 1MiB of each GPU; without the key, the whole of each";
        table.refuse("memory", &Value::from(memory.to_string()), allowed);
    }
    Some(GpuNeed {
        count: table.number("count", 1, GpuNeed::MOST).unwrap_or(1),
        memory,
        models: models(table),
    })
}

fn models(table: &mut Table<'_>) -> BTreeSet<GpuModel> {
    let Some(all) = table.optional_list::<GpuModel>("models") else { return BTreeSet::new() };
    let value = table.map.and_then(|map| map.get("models"));
    // It would say "none will do", which nobody means.
    if let Some(value) = value.filter(|value| value.as_array().is_some_and(Vec::is_empty)) {
        table.refuse("models", value, "at least one; without the key, any model will do");
    }
    let mut models = BTreeSet::new();
    for model in all {
        let text = Value::from(model.to_string());
        if !models.insert(model) {
            table.refuse("models", &text, "each model once");
        }
    }
    models
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Manifest;

    fn need(gpu: Value) -> Result<Option<GpuNeed>, Vec<String>> {
        let document = json!({"app": "web", "image": "web", "resources": {"gpu": gpu}});
        let manifest = Manifest::from_document(&document);
        manifest
            .map(|manifest| manifest.resources.gpu)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_need_is_of_one_whole_gpu_unless_it_says_more() {
        let whole = GpuNeed { count: 1, memory: None, models: BTreeSet::new() };
        assert_eq!(need(json!({})).unwrap(), Some(whole));
        assert_eq!(need(Value::Null).unwrap(), None);
        let said = need(json!({"count": 2, "memory": "20GiB", "models": ["h100", "a100"]}))
            .unwrap()
            .unwrap();
        assert_eq!(said.to_string(), "2 GPUs of a100 or h100 with 20 GiB each");
        let stored = json!({"count": 2, "memory": 20_u64 << 30, "models": ["a100", "h100"]});
        assert_eq!(serde_json::to_value(&said).unwrap(), stored);
        let without = serde_json::to_value(crate::Resources::default()).unwrap();
        assert!(without.get("gpu").is_none(), "an older release reads what needs none");
    }

    #[test]
    fn every_problem_names_its_field_its_value_and_what_is_allowed() {
        for (gpu, told) in [
            (json!({"count": 0}), "resources.gpu.count = 0: a whole number from 1 to 16"),
            (json!({"count": 17}), "resources.gpu.count = 17: a whole number from 1 to 16"),
            (json!({"memory": "0"}), "resources.gpu.memory = \"0 B\": at least 1MiB of each GPU"),
            (json!({"memory": "1023KiB"}), "resources.gpu.memory = \"1023 KiB\": at least 1MiB"),
            (json!({"memory": "lots"}), "resources.gpu.memory = \"lots\": a whole number and B,"),
            (
                json!({"models": []}),
                "resources.gpu.models = []: at least one; without the key, any",
            ),
            (
                json!({"models": ["h100", "h100"]}),
                "resources.gpu.models = \"h100\": each model once",
            ),
            (json!({"models": ["H100"]}), "resources.gpu.models[0] = \"H100\": 1 to 40 lower-case"),
            (
                json!({"model": "h100"}),
                "resources.gpu.model = \"h100\": unknown key; did you mean \"models\"?",
            ),
            (json!(1), "resources.gpu = 1: a table"),
        ] {
            let problems = need(gpu).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(told), "{problems:?}");
        }
    }
}
