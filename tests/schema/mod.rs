//! Holds documents that gemmtune printed against the schemas of `docs/schemas/`.

use serde_json::Value;

/// The schema of that name, with the schemas it refers to written in.
pub(crate) fn load(name: &str) -> Value {
    let path = format!("{}/docs/schemas/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let mut schema: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    inline(&mut schema);
    schema
}

fn inline(schema: &mut Value) {
    if let Some(other) = schema.get("$ref").and_then(Value::as_str) {
        if let Some(name) = other.strip_suffix(".json") {
            *schema = load(name);
            let inner = schema.as_object_mut().unwrap();
            inner.remove("$id");
            inner.remove("$schema");
        }
        return;
    }
    match schema {
        Value::Object(members) => members.values_mut().for_each(inline),
        Value::Array(items) => items.iter_mut().for_each(inline),
        _ => {}
    }
}

/// The schema with every object closed. Readers must bear fields they do not know, so the schemas leave objects open;
/// but a field that gemmtune prints and no schema describes is a gap in the documentation.
pub(crate) fn closed(mut schema: Value) -> Value {
    fn close(schema: &mut Value) {
        match schema {
            Value::Object(members) => {
                if members.contains_key("properties")
                    && !members.contains_key("additionalProperties")
                {
                    members.insert("additionalProperties".to_owned(), Value::Bool(false));
                }
                members.values_mut().for_each(close);
            }
            Value::Array(items) => items.iter_mut().for_each(close),
            _ => {}
        }
    }
    close(&mut schema);
    schema
}

/// What is wrong with the document.
pub(crate) fn wrong(schema: &Value, document: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors = validator.iter_errors(document);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// The document is as `docs/schemas/NAME.json` says, and has no field that it does not describe.
pub(crate) fn check(name: &str, document: &Value) {
    let wrong = wrong(&closed(load(name)), document);
    assert!(
        wrong.is_empty(),
        "docs/schemas/{name}.json and the document differ:\n{}\n{document:#}",
        wrong.join("\n")
    );
}
