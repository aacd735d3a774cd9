//! Pact files (version 3): read, brought into their states, replayed against a live server, and compared.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::contract::validate;
use crate::common::*;

/// The key that the consumers of the pacts use.
const PACT_KEY: &str = "pact-key";

/// One interaction of one file.
pub struct Interaction {
    /// File and description, for messages.
    pub name: String,
    content: Value,
}

impl Interaction {
    pub fn method(&self) -> &str {
        self.content["request"]["method"].as_str().expect("a method")
    }

    pub fn path(&self) -> &str {
        self.content["request"]["path"].as_str().expect("a path")
    }

    pub fn status(&self) -> u16 {
        self.content["response"]["status"].as_u64().and_then(|s| s.try_into().ok()).expect("a status")
    }

    pub fn body(&self) -> Option<&Value> {
        self.content["request"].get("body")
    }

    fn states(&self) -> impl Iterator<Item = (&str, &Value)> {
        let states = self.content["providerStates"].as_array().into_iter().flatten();
        states.map(|s| (s["name"].as_str().expect("a state has a name"), &s["params"]))
    }

    /// The request as the consumer sends it.
    pub fn request(&self) -> Request {
        let mut request = Request::new(self.method(), self.path());
        for (name, value) in self.content["request"]["headers"].as_object().into_iter().flatten() {
            request = request.with(name, value.as_str().expect("a header is text"));
        }
        match self.body() {
            Some(body) => request.with_body(body.to_string()),
            None => request,
        }
    }

    /// Compares an answer with what the consumer expects. More than that may be in it.
    pub fn compare(&self, answer: &Answer) -> Result<(), String> {
        let expected = &self.content["response"];
        if answer.status != self.status() {
            return Err(format!("{} instead of {}: {}", answer.status, self.status(), answer.text()));
        }
        let rules = &expected["matchingRules"];
        for (name, value) in expected["headers"].as_object().into_iter().flatten() {
            let sent = answer.header(name).ok_or_else(|| format!("no header {name}"))?;
            compare_value(value, &json!(sent), name, &rules["header"])?;
        }
        match expected.get("body") {
            Some(Value::String(text)) => compare_value(&json!(text), &json!(answer.text()), "$", &rules["body"]),
            Some(body) => compare_value(body, &answer.json().map_err(|e| e.to_string())?, "$", &rules["body"]),
            None => Ok(()),
        }
    }
}

/// Every interaction of every file in `tests/pacts`.
pub fn load() -> Vec<Interaction> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pacts");
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("tests/pacts") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        let pact: Value = serde_json::from_str(&fs::read_to_string(&path).expect("a pact")).expect(&file);
        assert_eq!(pact["provider"]["name"], "orchestratord", "{file}");
        for content in pact["interactions"].as_array().expect("interactions") {
            let name = format!("{file}: {}", content["description"].as_str().expect("a description"));
            all.push(Interaction { name, content: content.clone() });
        }
    }
    all
}

/// Rules stand under paths such as `$.engines[0].ctx_max`; without one, values must be equal.
fn compare_value(expected: &Value, actual: &Value, path: &str, rules: &Value) -> Result<(), String> {
    if let Some(rule) = rules.get(path) {
        return compare_by_rule(&rule["matchers"][0], expected, actual, path);
    }
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => expected.iter().try_for_each(|(key, value)| {
            let path = format!("{path}.{key}");
            let actual = actual.get(key).ok_or_else(|| format!("{path} is missing"))?;
            compare_value(value, actual, &path, rules)
        }),
        (Value::Array(expected), Value::Array(actual)) if expected.len() == actual.len() => {
            let mut pairs = expected.iter().zip(actual).enumerate();
            pairs.try_for_each(|(i, (e, a))| compare_value(e, a, &format!("{path}[{i}]"), rules))
        }
        _ if expected == actual => Ok(()),
        _ => Err(format!("{path} is {actual}, not {expected}")),
    }
}

fn compare_by_rule(rule: &Value, expected: &Value, actual: &Value, path: &str) -> Result<(), String> {
    let same_type = std::mem::discriminant(expected) == std::mem::discriminant(actual);
    let holds = match rule["match"].as_str() {
        Some("type") => same_type,
        Some("integer") => actual.is_i64() || actual.is_u64(),
        Some("number") => actual.is_number(),
        Some("regex") => {
            let pattern = json!({ "type": "string", "pattern": rule["regex"] });
            return validate(&pattern, actual).map_err(|e| format!("{path}: {e}"));
        }
        other => return Err(format!("{path}: the rule {other:?} is not known")),
    };
    if holds { Ok(()) } else { Err(format!("{path} is {actual}, not {rule} like {expected}")) }
}

/// Servers in the states that consumers ask for. Those who ask for nothing special share one.
pub struct Provider {
    shared: Server,
}

/// A server for one interaction, and what must stay alive beside it.
pub struct Prepared<'a> {
    shared: &'a Server,
    own: Option<Server>,
    _held: Vec<EventStream>,
    _folder: Option<Scratch>,
}

impl Prepared<'_> {
    pub fn server(&self) -> &Server {
        self.own.as_ref().unwrap_or(self.shared)
    }
}

impl Provider {
    pub fn new() -> Provider {
        Provider { shared: server_with(settings()) }
    }

    /// Brings about every state of an interaction.
    pub fn prepare(&self, interaction: &Interaction) -> Prepared<'_> {
        let mut prepared = Prepared { shared: &self.shared, own: None, _held: Vec::new(), _folder: None };
        for (name, params) in interaction.states() {
            enter(&mut prepared, name, params);
        }
        prepared
    }
}

fn settings() -> Settings {
    Settings::default().with("api_keys", PACT_KEY)
}

fn enter(prepared: &mut Prepared<'_>, state: &str, params: &Value) {
    match state {
        "a server of its own" => prepared.own = Some(server_with(settings())),
        "a task was accepted" => {
            enqueue(prepared.server(), params);
        }
        "a task has ended" => {
            run(prepared.server(), params);
        }
        "a task decodes" => {
            enqueue(prepared.server(), params);
            wait_for_tokens(&open(prepared.server(), params), 1);
        }
        "the queue is full" => {
            let server = server_with(settings().with("slots_max", 1).with("queue_capacity", 1));
            let (_, stream) = occupy(&server);
            enqueue(&server, &endless());
            prepared._held.push(stream);
            prepared.own = Some(server);
        }
        "the pool drains" => {
            let server = server_with(settings());
            let drained = post(&server, &format!("/v1/pools/{POOL}/drain"), &json!({ "deadline_ms": 60_000 }));
            assert_eq!(drained.status, 202, "{}", drained.text());
            prepared.own = Some(server);
        }
        "a model file is corrupt" => {
            let folder = Scratch::new().expect("a folder");
            let file = format!("{}.gguf", params["name"].as_str().expect("a name"));
            fs::write(folder.path().join(file), b"GGUF, but only by name").expect("written");
            prepared.own = Some(server_with(settings().with("models_dir", folder.path().display())));
            prepared._folder = Some(folder);
        }
        "an artifact is kept" => {
            let kept = post(prepared.server(), "/v1/artifacts", params);
            assert_eq!(kept.status, 201, "{}", kept.text());
        }
        other => panic!("no such provider state: {other}"),
    }
}
