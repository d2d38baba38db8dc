//! `oomprobe schema`: the JSON Schema of every event and of a story, and the reference made from
//! the events'.

use std::fmt::Write as _;
use std::io::{self, Write};

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::event::Event;
use crate::story::Story;

/// Arguments of `oomprobe schema`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of what
    #[arg(value_enum, default_value_t = Of::Event)]
    of: Of,
}

/// What has a schema.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Of {
    /// Every event, as `trace` writes them.
    Event,
    /// The story of one pod, as `explain` writes it.
    Story,
}

/// Writes the schema to `out`.
pub fn run(args: &Args, mut out: impl Write) -> io::Result<()> {
    let text = match args.of {
        Of::Event => json(),
        Of::Story => story_json(),
    };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// JSON Schema (2020-12) of an event, as committed in `schema/oomprobe-1.schema.json`.
///
/// It describes what oomprobe writes: a field that is always written is required, `null`
/// included.
pub fn json() -> String {
    format!("{:#}\n", schema())
}

/// The same of a story.
pub fn story_json() -> String {
    format!("{:#}\n", schema_of::<Story>())
}

fn schema() -> Value {
    schema_of::<Event>()
}

fn schema_of<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// Reference for people, as committed in `docs/events.md`.
pub fn markdown() -> String {
    let schema = schema();
    let mut page = String::from(HEAD);
    let definitions = schema.get("$defs").and_then(Value::as_object);
    page.push_str("\n## Every event\n\n");
    table(&mut page, &schema);
    for kind in schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let name = constant(kind, "kind");
        let _ = write!(page, "\n## `{name}`\n\n");
        let body = kind
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|path| definitions?.get(path.rsplit('/').next()?));
        if let Some(text) = body.and_then(description) {
            let _ = write!(page, "{text}\n\n");
        }
        if let Some(body) = body {
            table(&mut page, body);
        }
    }
    page.push_str("\n## Types\n");
    let is_body = |name: &str| {
        let kinds = schema
            .get("oneOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        kinds
            .filter_map(|kind| kind.get("$ref")?.as_str())
            .any(|path| path.ends_with(&format!("/{name}")))
    };
    for (name, definition) in definitions.into_iter().flatten() {
        if is_body(name) {
            continue;
        }
        let _ = write!(page, "\n### {name}\n\n");
        if let Some(text) = description(definition) {
            let _ = write!(page, "{text}\n\n");
        }
        match definition.get("oneOf").and_then(Value::as_array) {
            Some(values) => list(&mut page, values),
            None => table(&mut page, definition),
        }
    }
    page
}

const HEAD: &str = "\
# Events

Generated from the types by `UPDATE_SCHEMA=1 cargo test -p probe-user --test events`; do not edit.
The same as JSON Schema: `oomprobe schema`, or schema/oomprobe-1.schema.json.

One JSON object a line. A dotted path is an OpenTelemetry attribute (`.k8s.pod.name`); own names
carry their unit. What is not known is `null`, never 0. Fields and kinds may be added within
`oomprobe/1`: ignore those you do not know. The value of `kind` is the title of a section below.
";

fn table(page: &mut String, schema: &Value) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    page.push_str("| field | type | meaning |\n|---|---|---|\n");
    for (name, property) in properties {
        let text = description(property)
            .unwrap_or_default()
            .replace('|', "\\|");
        let _ = writeln!(page, "| `{name}` | {} | {text} |", type_of(property));
    }
}

fn list(page: &mut String, values: &[Value]) {
    for value in values {
        if let Some(name) = value.get("const").and_then(Value::as_str) {
            let _ = writeln!(
                page,
                "- `{name}`: {}",
                description(value).unwrap_or_default()
            );
        }
    }
}

/// On one line: the line breaks of the source mean nothing.
fn description(schema: &Value) -> Option<String> {
    let text = schema.get("description")?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn constant<'a>(schema: &'a Value, property: &str) -> &'a str {
    let path = format!("/properties/{property}/const");
    schema
        .pointer(&path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The type as a reader would say it, with a link where it has a section of its own.
fn type_of(property: &Value) -> String {
    if let Some(path) = property.get("$ref").and_then(Value::as_str) {
        let name = path.rsplit('/').next().unwrap_or(path);
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(choices) = property.get("anyOf").and_then(Value::as_array) {
        let choices: Vec<_> = choices.iter().map(type_of).collect();
        return choices.join(" or ");
    }
    if let Some(values) = property.get("oneOf").and_then(Value::as_array) {
        let values: Vec<_> = values.iter().map(type_of).collect();
        return values.join(" or ");
    }
    if let Some(value) = property.get("const") {
        return format!("`{value}`");
    }
    let name = |name: &str| match (name, property.get("items"), additional(property)) {
        ("array", Some(items), _) => format!("list of {}", type_of(items)),
        ("object", _, Some(values)) => format!("map to {}", type_of(values)),
        ("string", ..) if property.get("format").is_some() => "time".to_owned(),
        _ => name.to_owned(),
    };
    match property.get("type") {
        Some(Value::String(one)) => name(one),
        Some(Value::Array(many)) => {
            let many: Vec<_> = many.iter().filter_map(Value::as_str).map(name).collect();
            many.join(" or ")
        }
        _ => String::new(),
    }
}

fn additional(property: &Value) -> Option<&Value> {
    property
        .get("additionalProperties")
        .filter(|values| values.is_object())
}
