//! `docs/api.md` is the OpenAPI documents, written for people: this writes it, and fails where it is not current.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

const UPDATE: &str = "UPDATE_DOCS=1 cargo test -p orchestratord --test api_reference";

#[test]
fn the_api_reference_is_what_the_documents_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("docs/api.md");
    let wanted = reference(root);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("docs/ can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = wanted.lines().zip(found.lines()).position(|(w, f)| w != f);
    assert!(found == wanted, "docs/api.md is not current, from line {:?} on: {UPDATE}", differs.map(|line| line + 1));
}

fn reference(root: &Path) -> String {
    let documents = Documents::read(root);
    let mut out = String::from(
        "# API reference\n\nMade from `tests/openapi/`, against which tests hold the server; do not edit it here. Bodies are JSON. Fields marked\n\
         with \\* are always there, or needed. Clients must ignore fields that they do not know.\n",
    );
    for name in ["data", "control", "gateway"] {
        documents.write_document(name, &mut out);
    }
    out
}

/// The documents by their file's name.
struct Documents(Map<String, Value>);

impl Documents {
    fn read(root: &Path) -> Documents {
        let read = |name: &str| {
            let path = root.join(format!("tests/openapi/{name}.yaml"));
            let text = std::fs::read_to_string(&path).expect("the document is there");
            (format!("{name}.yaml"), serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}")))
        };
        Documents(["data", "control", "gateway", "shared"].into_iter().map(read).collect())
    }

    /// A value in a file, past any reference; with the file that it stands in.
    fn follow<'a>(&'a self, file: &'a str, value: &'a Value) -> (&'a str, &'a Value) {
        let Some(target) = value["$ref"].as_str() else { return (file, value) };
        let (other, pointer) = target.split_once('#').expect("a reference has a #");
        let other = if other.is_empty() { file } else { other };
        let (key, document) = self.0.get_key_value(other).unwrap_or_else(|| panic!("{target}: no such file"));
        self.follow(key, document.pointer(pointer).unwrap_or_else(|| panic!("{target} is not there")))
    }

    fn write_document(&self, name: &str, out: &mut String) {
        let file = format!("{name}.yaml");
        let document = &self.0[&file];
        let title = text(&document["info"]["title"]);
        let _ = write!(out, "\n## {title}\n\n{}\n", text(&document["info"]["description"]).trim());
        for (path, item) in object(&document["paths"]) {
            let (item_file, item) = self.follow(&file, item);
            let methods = object(item).iter().filter(|(key, _)| ["get", "post", "delete"].contains(&key.as_str()));
            for (method, operation) in methods {
                let _ = write!(out, "\n### {} {path}\n\n", method.to_uppercase());
                self.write_operation(item_file, operation, out);
            }
        }
    }

    fn write_operation(&self, file: &str, operation: &Value, out: &mut String) {
        for key in ["summary", "description"] {
            let said = text(&operation[key]);
            if !said.is_empty() {
                let _ = writeln!(out, "{}\n", said.trim());
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (_, p) = self.follow(file, parameter);
            let mark = if p["required"] == true { "\\*" } else { "" };
            let said = line(text(&p["description"]));
            let _ = writeln!(
                out,
                "- {} `{}`{mark}: {}{}",
                text(&p["in"]),
                text(&p["name"]),
                self.kind(file, &p["schema"]),
                after(&said)
            );
        }
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        if !body.is_null() {
            let _ = writeln!(out, "\nBody:\n");
            self.write_fields(file, body, 0, out);
        }
        out.push('\n');
        for (status, response) in object(&operation["responses"]) {
            let (response_file, response) = self.follow(file, response);
            let _ = writeln!(out, "- **{status}** {}", line(text(&response["description"])));
            for (media, content) in response["content"].as_object().into_iter().flatten() {
                let name = reference_name(&content["schema"]);
                if !name.is_empty() {
                    let _ = writeln!(out, "  - `{media}`: {name}");
                }
                for (event, schema) in content["x-sse-events"].as_object().into_iter().flatten() {
                    let _ = writeln!(out, "  - event `{event}`: {}", self.kind(response_file, schema));
                }
                if content["x-sse-events"].is_null() && media == "application/json" && status.starts_with('2') {
                    self.write_fields(response_file, &content["schema"], 1, out);
                }
            }
        }
    }

    /// The fields of an object, those of objects in it below them, three levels deep.
    fn write_fields(&self, file: &str, schema: &Value, depth: usize, out: &mut String) {
        let (file, schema) = self.follow(file, schema);
        if let Some(parts) = schema["allOf"].as_array() {
            return parts.iter().for_each(|part| self.write_fields(file, part, depth, out));
        }
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let mark = if required.contains(&name.as_str()) { "\\*" } else { "" };
            let (field_file, target) = self.follow(file, field);
            let said = line(text(&target["description"]));
            let _ = writeln!(out, "{}- `{name}`{mark}: {}{}", "  ".repeat(depth), self.kind(file, field), after(&said));
            let inner = if target["type"] == "array" { &target["items"] } else { target };
            if depth < 3 {
                self.write_fields(field_file, inner, depth + 1, out);
            }
        }
    }

    /// What a value is, in some words.
    fn kind(&self, file: &str, schema: &Value) -> String {
        let (file, schema) = self.follow(file, schema);
        if let Some(several) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            return several.iter().map(|one| self.kind(file, one)).collect::<Vec<_>>().join(" or ");
        }
        if !schema["const"].is_null() {
            return format!("`{}`", schema["const"]);
        }
        if let Some(values) = schema["enum"].as_array() {
            return values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ");
        }
        let mut kind = match &schema["type"] {
            Value::String(one) if one == "array" => format!("list of {}", self.kind(file, &schema["items"])),
            Value::String(one) => one.clone(),
            Value::Array(several) => several.iter().map(text).collect::<Vec<_>>().join(" or "),
            _ => "anything".to_owned(),
        };
        for (key, sign) in [("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("default", "default")] {
            if !schema[key].is_null() {
                let _ = write!(kind, ", {sign} {}", schema[key]);
            }
        }
        kind
    }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("an object was expected, not {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Text on one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(". {said}") }
}

/// The name of a schema that is referred to.
fn reference_name(schema: &Value) -> &str {
    schema["$ref"].as_str().and_then(|target| target.rsplit('/').next()).unwrap_or_default()
}
