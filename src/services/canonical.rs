//! Canonical JSON (RFC 8785) written as such: a tree of values costs ten times what it takes to write its text.

use serde_json::Value;

use super::artifacts::canonical;

/// A canonical object under construction: whoever writes it gives the keys in their order.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    last_key: &'static str,
}

impl Object<'_> {
    /// Appends the object that `fill` gives the members of.
    pub fn write(out: &mut Vec<u8>, fill: impl FnOnce(&mut Object<'_>)) {
        out.push(b'{');
        let mut object = Object { out, last_key: "" };
        fill(&mut object);
        object.out.push(b'}');
    }

    pub fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        write_text(self.out, text);
    }

    pub fn texts(&mut self, key: &'static str, texts: &[String]) {
        self.list(key, texts, |out, text| write_text(out, text));
    }

    /// Printable ASCII without quotes and backslashes: ids, digests.
    pub fn plain(&mut self, key: &'static str, text: &str) {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
    }

    /// A whole number up to 2^53, beyond which JSON does not keep them.
    pub fn integer(&mut self, key: &'static str, value: u64) {
        self.key(key);
        write_integer(self.out, value);
    }

    pub fn integers(&mut self, key: &'static str, values: &[u32]) {
        self.list(key, values, |out, value| write_integer(out, u64::from(*value)));
    }

    /// A finite number.
    pub fn number(&mut self, key: &'static str, value: f64) {
        self.key(key);
        // Most are settings at their defaults.
        if (0.0..1e15).contains(&value) && value.fract() == 0.0 {
            return write_integer(self.out, value as u64);
        }
        self.out.extend_from_slice(ryu_js::Buffer::new().format_finite(value).as_bytes());
    }

    pub fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    pub fn object(&mut self, key: &'static str, fill: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        Object::write(self.out, fill);
    }

    /// Anything else.
    pub fn value(&mut self, key: &'static str, value: &Value) {
        self.key(key);
        self.out.extend_from_slice(&canonical(value));
    }

    fn list<T>(&mut self, key: &'static str, values: &[T], one: impl Fn(&mut Vec<u8>, &T)) {
        self.key(key);
        self.out.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            one(self.out, value);
        }
        self.out.push(b']');
    }

    fn key(&mut self, key: &'static str) {
        // The first letters nearly always settle it.
        let begins_later = self.last_key.as_bytes().first() < key.as_bytes().first();
        assert!(begins_later || self.last_key < key, "the canonical form has {key:?} before {:?}", self.last_key);
        let before: &[u8] = if self.last_key.is_empty() { b"\"" } else { b",\"" };
        self.last_key = key;
        self.out.reserve(before.len() + key.len() + 2);
        self.out.extend_from_slice(before);
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// The escapes of this writer are those of the canonical form.
fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a buffer takes everything");
}

fn write_integer(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_written_as_its_tree_would_be() {
        let strange = "quote \" slash \\ line\nend é🦀\u{1}\u{7f}\u{2028}";
        let numbers = [0.7f32 as f64, -0.0, 100.0, 1e9, 1e21, 1e-7, 0.000_001, 123_456.789, -2.5];
        let mut out = Vec::new();
        Object::write(&mut out, |object| {
            object.integers("a", &[]);
            object.integers("b", &[1, 20_000, u32::MAX]);
            for (key, number) in ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"].into_iter().zip(numbers) {
                object.number(key, number);
            }
            object.text("g", strange);
            object.integer("h", (1 << 53) - 1);
            object.value("i", &json!({"z": [true, null], "y": 1e-7}));
            object.flag("j", true);
            object.plain("k", "ff");
            object.texts("l", &["".to_owned(), strange.to_owned()]);
            object.object("m", |inner| inner.object("n", |_| ()));
        });
        let [c0, c1, c2, c3, c4, c5, c6, c7, c8] = numbers;
        let tree = json!({
            "m": {"n": {}}, "l": ["", strange], "k": "ff", "j": true,
            "i": {"z": [true, null], "y": 1e-7}, "h": (1u64 << 53) - 1, "g": strange,
            "c0": c0, "c1": c1, "c2": c2, "c3": c3, "c4": c4, "c5": c5, "c6": c6, "c7": c7, "c8": c8,
            "b": [1, 20_000, u32::MAX], "a": [],
        });
        assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(canonical(&tree)).unwrap());
    }

    #[test]
    #[should_panic(expected = "the canonical form has")]
    fn keys_out_of_their_order_are_a_defect() {
        Object::write(&mut Vec::new(), |object| {
            object.flag("b", true);
            object.flag("a", true);
        });
    }
}
