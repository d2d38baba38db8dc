//! The committed schema and reference follow the types, and events follow the schema.

use std::collections::BTreeSet;

use oomprobe::cli::schema;
use oomprobe::event::{Body, OomKill, Outcome, Severity};
use serde_json::Value;

use crate::committed::assert_committed;
use crate::samples;

#[test]
fn the_committed_schema_follows_the_types() {
    assert_committed("schema/oomprobe-1.schema.json", &schema::json());
}

#[test]
fn the_committed_reference_follows_the_types() {
    assert_committed("docs/events.md", &schema::markdown());
}

#[test]
fn every_field_and_value_is_described() {
    let schema: Value = serde_json::from_str(&schema::json()).unwrap();
    let mut missing = Vec::new();
    undescribed("$", &schema, &mut missing);
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Properties and enum values without a description, anywhere in the schema.
fn undescribed(at: &str, schema: &Value, missing: &mut Vec<String>) {
    let Some(object) = schema.as_object() else {
        for item in schema.as_array().into_iter().flatten() {
            undescribed(at, item, missing);
        }
        return;
    };
    for (name, property) in object
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if property.get("description").is_none() && property.get("const").is_none() {
            missing.push(format!("{at}.{name}"));
        }
    }
    if object.contains_key("enum") {
        missing.push(format!("{at}: values without a description"));
    }
    for (name, value) in object {
        undescribed(&format!("{at}.{name}"), value, missing);
    }
}

#[test]
fn events_follow_the_schema() {
    let schema: Value = serde_json::from_str(&schema::json()).unwrap();
    let mut kinds = BTreeSet::new();
    for event in samples::all() {
        let value = serde_json::to_value(&event).unwrap();
        let errors = violations(&schema, &schema, &value, "$");
        assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
        kinds.insert(event.body.kind());
        assert_eq!(value["kind"], event.body.kind());
    }
    let all = schema["oneOf"].as_array().unwrap();
    assert_eq!(kinds.len(), all.len(), "a sample of every kind");
}

#[test]
fn the_check_itself_finds_violations() {
    let schema: Value = serde_json::from_str(&schema::json()).unwrap();
    let sample = serde_json::to_value(samples::explained(samples::container_kill())).unwrap();
    for (pointer, wrong) in [
        ("/schema", "oomprobe/0".into()),
        ("/kind", "unheard_of".into()),
        ("/scope", "galaxy".into()),
        ("/memory/anon_bytes", "12".into()),
        ("/memory/anon_bytes", Value::from(-1)),
        ("/victims/0/process/rss", Value::from(3)),
        ("/hooks/decision", Value::Null),
    ] {
        let mut broken = sample.clone();
        *broken.pointer_mut(pointer).unwrap() = wrong;
        assert!(
            !violations(&schema, &schema, &broken, "$").is_empty(),
            "{pointer}"
        );
    }
    let mut broken = sample;
    broken["memory"]
        .as_object_mut()
        .unwrap()
        .remove("anon_bytes");
    assert!(
        !violations(&schema, &schema, &broken, "$").is_empty(),
        "a required field is gone"
    );
}

#[test]
fn events_survive_a_round_trip() {
    for event in samples::all() {
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(
            serde_json::from_str::<oomprobe::event::Event>(&line).unwrap(),
            event
        );
    }
}

#[test]
fn severity_follows_from_what_happened() {
    let severity = |kill| samples::explained(kill).severity;
    assert_eq!(severity(samples::container_kill()), Severity::Error);
    assert_eq!(severity(samples::node_kill()), Severity::Fatal);
    let marked = OomKill {
        outcome: Outcome::MarkedExiting,
        ..samples::container_kill()
    };
    assert_eq!(severity(marked), Severity::Info);
    let others: Vec<_> = samples::others()
        .iter()
        .map(|event| event.severity)
        .collect();
    let (info, warn) = (Severity::Info, Severity::Warn);
    assert_eq!(others, [info, info, warn, info, warn, warn]);
    for event in samples::pressure() {
        let expected = match &event.body {
            Body::Pressure(pressure) if !pressure.findings.is_empty() => warn,
            Body::LeakSuspect(_) => warn,
            _ => info,
        };
        assert_eq!(event.severity, expected, "{}", event.body.kind());
    }
}

#[test]
fn dotted_paths_are_opentelemetry_attributes() {
    let event = serde_json::to_value(samples::explained(samples::container_kill())).unwrap();
    for path in [
        "k8s.pod.name",
        "k8s.pod.uid",
        "k8s.namespace.name",
        "k8s.container.name",
        "k8s.container.restart_count",
        "k8s.node.name",
        "container.id",
        "container.runtime",
        "process.pid",
        "host.name",
    ] {
        let pointer = format!("/{}", path.replace('.', "/"));
        assert!(
            event
                .pointer(&pointer)
                .is_some_and(|value| !value.is_null()),
            "{path}"
        );
    }
}

/// What in `value` breaks `schema`: the part of JSON Schema that schemars writes for these types.
/// A keyword outside of that part is an error, so that nothing goes unchecked.
fn violations(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut errors = Vec::new();
    for (keyword, rule) in schema.as_object().unwrap() {
        let ok = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "format" | "default" => true,
            "$ref" => {
                let target = root.pointer(&rule.as_str().unwrap()[1..]).unwrap();
                errors.extend(violations(root, target, value, at));
                true
            }
            "type" => match rule.as_array() {
                Some(types) => types.iter().any(|name| is(value, name)),
                None => is(value, rule),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.is_null() || value.as_f64() >= rule.as_f64(),
            "maximum" => value.is_null() || value.as_f64() <= rule.as_f64(),
            "required" => {
                let names = rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|name| name.as_str().unwrap());
                let missing: Vec<_> = names.filter(|name| value.get(name).is_none()).collect();
                errors.extend(missing.iter().map(|name| format!("{at}.{name} is missing")));
                true
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        errors.extend(violations(root, rule, value, &format!("{at}.{name}")));
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    errors.extend(violations(root, rule, value, &format!("{at}.{name}")));
                }
                true
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    errors.extend(violations(root, rule, value, &format!("{at}[{index}]")));
                }
                true
            }
            "oneOf" | "anyOf" => {
                let rules = rule.as_array().unwrap().iter();
                let fits = rules
                    .filter(|rule| violations(root, rule, value, at).is_empty())
                    .count();
                if keyword == "oneOf" {
                    fits == 1
                } else {
                    fits > 0
                }
            }
            other => panic!("{at}: keyword {other} is not checked"),
        };
        if !ok {
            errors.push(format!("{at}: {value} breaks {keyword} {rule}"));
        }
    }
    errors
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}
