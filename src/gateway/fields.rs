//! A request's fields, taken one by one: what nobody has taken at the end is not supported, and said so by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::api::types::from_json;
use crate::domain::error::OrchestratorError;

/// The fields of a JSON object that have not been taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    ///
    /// When the body is not a JSON object.
    pub fn read(body: &mut [u8]) -> Result<Fields, Refusal> {
        match from_json::<Value>(body)? {
            Value::Object(fields) => Ok(Fields(fields)),
            _ => Err(OrchestratorError::InvalidParams(
                "the body is JSON, but not an object: send its fields in {}".into(),
            )
            .into()),
        }
    }

    /// Takes a field; one that is null is one that was not sent.
    ///
    /// # Errors
    ///
    /// When it has another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|e| Refusal::field(name, e)),
        }
    }

    /// A field as it was sent, which stays to be taken.
    pub fn peek(&self, name: &str) -> Option<Value> {
        self.0.get(name).filter(|value| !value.is_null()).cloned()
    }

    /// # Errors
    ///
    /// When it is missing or has another type.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Refusal> {
        self.take(name)?.ok_or_else(|| Refusal::field(name, "is missing"))
    }

    /// Takes a field that changes nothing here, whatever it says: who the user is, what the request is called.
    pub fn pass_over(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.0.remove(*name)));
    }

    /// Takes a field that may only say what is done anyway.
    ///
    /// # Errors
    ///
    /// When it says something else.
    pub fn only(&mut self, name: &str, legal: &[Value], why: &str) -> Result<(), Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if legal.contains(&value) => Ok(()),
            Some(_) => Err(Refusal::field(name, why)),
        }
    }

    /// # Errors
    ///
    /// Naming a field that nobody has taken.
    pub fn finish(self) -> Result<(), Refusal> {
        match self.0.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(Refusal::field(name, "is not supported by this server: leave it out")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(text: &str) -> Fields {
        Fields::read(&mut text.as_bytes().to_vec()).unwrap()
    }

    fn param(result: Result<(), Refusal>) -> Option<String> {
        let state = crate::state::AppState::new().unwrap();
        let body = result.err()?.body(super::super::refusal::Shape::OpenAi, "r", &state);
        body["error"]["param"].as_str().map(str::to_owned)
    }

    #[test]
    fn what_is_not_taken_is_refused_by_name_unless_it_is_null() {
        let mut f = fields(r#"{"a": 1, "b": null, "user": {"x": 2}}"#);
        assert_eq!(f.take::<u32>("a").unwrap(), Some(1));
        f.pass_over(&["user"]);
        assert_eq!(param(f.finish()), None);
        assert_eq!(param(fields(r#"{"audio": {}}"#).finish()).as_deref(), Some("audio"));
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        let mut f = fields(r#"{"a": "one", "m": ["audio"], "t": ["text"]}"#);
        assert_eq!(param(f.take::<u32>("a").map(drop)).as_deref(), Some("a"));
        assert_eq!(param(f.need::<u32>("c").map(drop)).as_deref(), Some("c"));
        assert_eq!(param(f.only("m", &[json!(["text"])], "text only")).as_deref(), Some("m"));
        assert_eq!(param(f.only("t", &[json!(["text"])], "text only")), None);
    }
}
