//! Schemas and reports.

use crate::support::Bench;
use serde_json::Value;

#[test]
fn schemas_are_schemas_and_refuse_unknown_keys() {
    let bench = Bench::new();
    for format in ["inventory", "plan", "signatures", "report"] {
        let schema: Value = serde_json::from_str(&bench.run(&["schema", format]).ok()).expect("JSON");
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{format}");
        assert_eq!(schema["additionalProperties"], Value::Bool(false), "{format}");
        let properties = schema["properties"].as_object().expect("properties");
        assert!(properties.contains_key("version"), "{format}");
        for (name, property) in properties {
            let described = property.get("description").is_some() || property.get("$ref").is_some();
            assert!(described, "{format}: {name} is not described");
        }
    }
    bench.run(&["schema", "recipe"]).fails(2);
}

#[test]
fn what_is_no_report_is_refused() {
    let bench = Bench::new();
    bench.write("report.json", "{\"version\": 1}");
    let wrong = bench.run(&["report", "report.json"]).fails(3);
    assert!(wrong.contains("schema report"), "{wrong}");
    bench.run(&["report", "absent.json"]).fails(3);
}
