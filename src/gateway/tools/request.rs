//! `tools`, `tool_choice` and `parallel_tool_calls` as each dialect spells them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::grammar::unenforceable;
use super::{Family, Function, Tools, Wanted, family_of};
use crate::domain::limits;
use crate::gateway::fields::Fields;
use crate::gateway::format::{NAME_RULE, is_name};
use crate::gateway::refusal::Refusal;
use crate::services::pool::Loaded;

/// What a request says about calling, before it is held against its functions.
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

/// Chat completions.
///
/// # Errors
///
/// Naming the field.
pub(in crate::gateway) fn chat(f: &mut Fields, loaded: &Loaded) -> Result<Option<Tools>, Refusal> {
    let functions = functions(f, |tool| match tool["type"].as_str() {
        Some("function") => Ok(tool["function"].take()),
        _ => Err(other_kind(tool)),
    })?;
    let choice = choice(f, |choice| match (choice.as_str(), choice["type"].as_str()) {
        (Some(word), _) => openai_word(word),
        (None, Some("function")) => choice["function"]["name"].as_str().map(|n| Choice::Named(n.to_owned())),
        _ => None,
    })?;
    let parallel = f.take("parallel_tool_calls")?.unwrap_or(true);
    tools(loaded, functions, choice, parallel)
}

/// Responses: the function's fields are not in an object of their own.
///
/// # Errors
///
/// Naming the field.
pub(in crate::gateway) fn response(f: &mut Fields, loaded: &Loaded) -> Result<Option<Tools>, Refusal> {
    let functions = functions(f, |tool| match tool["type"].as_str() {
        Some("function") => {
            let mut function = tool.take();
            function.as_object_mut().expect("it has a type").remove("type");
            Ok(function)
        }
        _ => Err(other_kind(tool)),
    })?;
    let choice = choice(f, |choice| match (choice.as_str(), choice["type"].as_str()) {
        (Some(word), _) => openai_word(word),
        (None, Some("function")) => choice["name"].as_str().map(|n| Choice::Named(n.to_owned())),
        _ => None,
    })?;
    let parallel = f.take("parallel_tool_calls")?.unwrap_or(true);
    tools(loaded, functions, choice, parallel)
}

/// Anthropic's messages.
///
/// # Errors
///
/// Naming the field.
pub(in crate::gateway) fn anthropic(f: &mut Fields, loaded: &Loaded) -> Result<Option<Tools>, Refusal> {
    let functions = functions(f, |tool| {
        if tool["type"].as_str().is_some_and(|kind| kind != "custom") {
            return Err(other_kind(tool));
        }
        let mut function = tool.take();
        if let Some(fields) = function.as_object_mut() {
            // Every prompt may be cached here.
            fields.remove("type");
            fields.remove("cache_control");
            if let Some(schema) = fields.remove("input_schema") {
                fields.insert("parameters".into(), schema);
            }
        }
        Ok(function)
    })?;
    let mut parallel = true;
    let choice = choice(f, |choice| {
        parallel = choice["disable_parallel_tool_use"] != true;
        match choice["type"].as_str()? {
            "none" => Some(Choice::None),
            "auto" => Some(Choice::Auto),
            "any" => Some(Choice::Required),
            "tool" => choice["name"].as_str().map(|n| Choice::Named(n.to_owned())),
            _ => None,
        }
    })?;
    tools(loaded, functions, choice, parallel)
}

fn other_kind(tool: &Value) -> String {
    let kind = tool["type"].as_str().unwrap_or_default();
    let name = tool["name"].as_str().map_or_else(String::new, |name| format!(" ({name:?})"));
    format!("a tool of type {kind:?}{name}: this server calls functions only: switch it off in the client")
}

fn openai_word(word: &str) -> Option<Choice> {
    match word {
        "none" => Some(Choice::None),
        "auto" => Some(Choice::Auto),
        "required" => Some(Choice::Required),
        _ => None,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

fn functions(f: &mut Fields, unwrap: impl Fn(&mut Value) -> Result<Value, String>) -> Result<Vec<Function>, Refusal> {
    let refuse = |what: String| Refusal::field("tools", what);
    let mut sent: Vec<Value> = f.take("tools")?.unwrap_or_default();
    if sent.len() > limits::FUNCTION_COUNT_MAX {
        return Err(refuse(format!("takes at most {} functions", limits::FUNCTION_COUNT_MAX)));
    }
    let mut functions: Vec<Function> = Vec::with_capacity(sent.len());
    for tool in &mut sent {
        let wire = unwrap(tool).map_err(refuse)?;
        let wire: Wire = serde_json::from_value(wire).map_err(|e| refuse(e.to_string()))?;
        if !is_name(&wire.name) {
            return Err(refuse(format!("{:?} is no name for a function: {NAME_RULE}", wire.name)));
        }
        if functions.iter().any(|known| known.name == wire.name) {
            return Err(refuse(format!("has two functions {:?}", wire.name)));
        }
        let parameters = parameters(wire.parameters)
            .ok_or_else(|| refuse(format!("the parameters of {:?} are no schema of an object", wire.name)))?;
        let strict = wire.strict == Some(true);
        functions.push(Function { name: wire.name, description: wire.description, parameters, strict });
    }
    Ok(functions)
}

/// The schema of arguments, which are always an object.
fn parameters(sent: Option<Value>) -> Option<Value> {
    let mut schema = match sent {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(schema) => schema,
    };
    let fields = schema.as_object_mut()?;
    match fields.get("type") {
        Some(kind) if kind != "object" => return None,
        Some(_) => {}
        None => drop(fields.insert("type".into(), "object".into())),
    }
    Some(schema)
}

fn choice(f: &mut Fields, read: impl FnOnce(&Value) -> Option<Choice>) -> Result<Option<Choice>, Refusal> {
    let Some(sent) = f.take::<Value>("tool_choice")? else { return Ok(None) };
    let known = read(&sent);
    known.map(Some).ok_or_else(|| Refusal::field("tool_choice", format!("{sent} is not known here")))
}

fn tools(
    loaded: &Loaded,
    functions: Vec<Function>,
    choice: Option<Choice>,
    parallel: bool,
) -> Result<Option<Tools>, Refusal> {
    let wanted = match choice {
        Some(Choice::None) => return Ok(None),
        None | Some(Choice::Auto) if functions.is_empty() => return Ok(None),
        None | Some(Choice::Auto) => Wanted::Auto,
        Some(Choice::Required) if functions.is_empty() => {
            return Err(Refusal::field("tool_choice", "needs tools: send the functions that may be called"));
        }
        Some(Choice::Required) => Wanted::Required,
        Some(Choice::Named(name)) => {
            let index = functions.iter().position(|f| f.name == name);
            let index = index.ok_or_else(|| Refusal::field("tool_choice", format!("{name:?} is none of the tools")));
            Wanted::Named(index?)
        }
    };
    let family: &Family = family_of(loaded).ok_or_else(|| {
        let model = &loaded.model_ref;
        let what = format!(
            "model {model} has no chat template that knows tools in a way that is known here: leave them out, or use a \
             model that was trained for them (the setting chat_template gives it another template)"
        );
        Refusal::field("tools", what)
    })?;
    let held_to_it = |f: &&Function| f.strict || wanted != Wanted::Auto;
    if let Some(why) = functions.iter().filter(held_to_it).find_map(|f| unenforceable(family, f)) {
        return Err(Refusal::field("tools", why));
    }
    Ok(Some(Tools { family, functions, wanted, parallel }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, body: &Value) -> Result<Vec<Function>, Refusal> {
        let mut f = Fields::read(&mut body.to_string().into_bytes()).unwrap();
        let unwrap = |tool: &mut Value| match kind {
            "chat" => Ok(tool["function"].take()),
            _ => Ok(tool.take()),
        };
        functions(&mut f, unwrap)
    }

    #[test]
    fn functions_are_checked_by_name_and_schema() {
        let function = |fields: Value| json!({"tools": [{"type": "function", "function": fields}]});
        let read_functions = read("chat", &function(json!({"name": "f", "parameters": {"properties": {}}}))).unwrap();
        assert_eq!(read_functions[0].parameters, json!({"properties": {}, "type": "object"}));
        assert!(!read_functions[0].strict && read_functions[0].description.is_none());
        for wrong in [
            json!({"name": "two words"}),
            json!({"name": ""}),
            json!({"name": "f", "parameters": {"type": "string"}}),
            json!({"name": "f", "parameters": []}),
            json!({"name": "f", "colour": 1}),
            json!({}),
        ] {
            let refusal = read("chat", &function(wrong.clone())).unwrap_err();
            assert_eq!(refusal.param(), Some("tools"), "{wrong}");
        }
        let twice = json!({"tools": [{"name": "f"}, {"name": "f"}]});
        assert_eq!(read("flat", &twice).unwrap_err().param(), Some("tools"));
    }

    #[test]
    fn who_sends_a_tool_of_another_kind_is_told_which() {
        let agents = other_kind(&json!({"type": "namespace", "name": "agents", "tools": []}));
        assert!(agents.starts_with("a tool of type \"namespace\" (\"agents\"): "), "{agents}");
        let search = other_kind(&json!({"type": "web_search"}));
        assert!(search.starts_with("a tool of type \"web_search\": "), "{search}");
    }
}
