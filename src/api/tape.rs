//! Reads values from a parsed body, which stays.
//!
//! The parser's own reader takes the tape and its memory with it: then every request needs new memory for one, and a second
//! tape for finding out which field it is that does not fit.

use serde::de::value::{Error, MapAccessDeserializer};
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use simd_json::{Node, StaticNode};

/// Reads the value at the start of some nodes.
pub struct Reader<'t, 'de> {
    nodes: std::slice::Iter<'t, Node<'de>>,
}

impl<'t, 'de> Reader<'t, 'de> {
    pub fn new(nodes: &'t [Node<'de>]) -> Reader<'t, 'de> {
        Reader { nodes: nodes.iter() }
    }

    fn next(&mut self) -> Result<Node<'de>, Error> {
        self.nodes.next().copied().ok_or_else(|| Error::custom("the body ends too early"))
    }

    fn peek(&self) -> Option<Node<'de>> {
        self.nodes.as_slice().first().copied()
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.next()? {
            Node::String(text) => visitor.visit_borrowed_str(text),
            Node::Static(StaticNode::Null) => visitor.visit_unit(),
            Node::Static(StaticNode::Bool(value)) => visitor.visit_bool(value),
            Node::Static(StaticNode::I64(value)) => visitor.visit_i64(value),
            Node::Static(StaticNode::U64(value)) => visitor.visit_u64(value),
            Node::Static(StaticNode::F64(value)) => visitor.visit_f64(value),
            Node::Array { len, .. } => visitor.visit_seq(Members { reader: self, left: len }),
            Node::Object { len, .. } => visitor.visit_map(Members { reader: self, left: len }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Some(Node::Static(StaticNode::Null)) = self.peek() {
            self.next()?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// A name, or an object of one member, whose key is the name.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.peek() {
            Some(Node::String(name)) => {
                self.next()?;
                visitor.visit_enum(name.into_deserializer())
            }
            Some(Node::Object { len: len @ 1, .. }) => {
                self.next()?;
                visitor.visit_enum(MapAccessDeserializer::new(Members { reader: self, left: len }))
            }
            // The visitor says what it expects.
            _ => self.deserialize_any(visitor),
        }
    }

    /// An object and nothing else: maps of JSON values would take null for an empty one.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(Node::Static(StaticNode::Null)) => Err(Error::invalid_type(Unexpected::Unit, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct struct identifier ignored_any
    }
}

/// What is left of an array or an object.
struct Members<'r, 't, 'de> {
    reader: &'r mut Reader<'t, 'de>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Members<'_, '_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Members<'_, '_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
        let mut bytes = text.as_bytes().to_vec();
        let tape = simd_json::to_tape(&mut bytes).expect("it is JSON");
        T::deserialize(&mut Reader::new(&tape.0)).map_err(|e| e.to_string())
    }

    #[derive(Deserialize, PartialEq, Debug)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
        Sized(u8),
        Named { x: f32 },
    }

    #[derive(Deserialize, PartialEq, Debug)]
    struct Shape {
        kind: Kind,
        other: Option<Kind>,
        some: Option<u32>,
        list: Vec<(i8, String)>,
        #[serde(default)]
        map: BTreeMap<String, f64>,
        nothing: (),
    }

    #[test]
    fn what_is_read_is_what_the_other_library_reads() {
        for text in [
            r#"{"kind": "plain", "other": {"sized": 7}, "some": 4294967295, "list": [[-1, "é\n"], [2, ""]], "nothing": null}"#,
            r#"{"kind": {"named": {"x": 1}}, "other": null, "list": [], "map": {"a": 1, "b": -2.5e3}, "nothing": null, "more": [{}]}"#,
            r#"{"kind": {"named": {"x": 0.1}}, "other": "plain", "list": [], "nothing": null, "more": {"deep": [[1], {"er": null}]}}"#,
        ] {
            let theirs: Shape = serde_json::from_str(text).expect("it has this shape");
            assert_eq!(read::<Shape>(text), Ok(theirs));
            assert_eq!(read::<Value>(text), Ok(serde_json::from_str(text).expect("it is JSON")));
        }
        let numbers = "[0, -0.0, 18446744073709551615, -9223372036854775808, 1e300, true, false]";
        assert_eq!(read::<Value>(numbers), Ok(json!([0, -0.0, u64::MAX, i64::MIN, 1e300, true, false])));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_was_expected() {
        for (text, said) in [
            (r#"{"kind": "round"}"#, "unknown variant `round`"),
            (r#"{"kind": 7}"#, "expected enum Kind"),
            (r#"{"kind": {"sized": 256}}"#, "expected u8"),
            (r#"{"kind": {"sized": 1, "plain": null}}"#, "expected enum Kind"),
            (r#"{"kind": "plain", "some": -1}"#, "expected u32"),
            (r#"{"kind": "plain", "list": "x"}"#, "expected a sequence"),
            (r#"{"kind": "plain", "list": [[1]]}"#, "expected a tuple of size 2"),
            (r#"{"kind": "plain", "map": {"a": "b"}}"#, "expected f64"),
            (r#"{"list": []}"#, "missing field `kind`"),
            ("7", "expected struct Shape"),
        ] {
            let error = read::<Shape>(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let error = read::<serde_json::Map<String, Value>>("null").expect_err("it is no object");
        assert!(error.contains("expected a map"), "{error}");
    }
}
