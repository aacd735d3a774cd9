//! Canonical JSON (RFC 8785) written a second time, so that the server's artifact ids are not checked with its own code.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// `sha256:` and the hexadecimal hash of the canonical form.
pub fn artifact_id(document: &Value) -> String {
    let hash = Sha256::digest(text(document).as_bytes());
    format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// The canonical form itself.
pub fn text(document: &Value) -> String {
    let mut text = String::new();
    write(document, &mut text);
    text
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n.as_f64().expect("numbers are doubles"))),
        Value::String(s) => string(s, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|k| k.encode_utf16().collect::<Vec<u16>>());
            out.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                string(key, out);
                out.push(':');
                write(&map[key], out);
            }
            out.push('}');
        }
    }
}

fn string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// As ECMAScript prints a number: shortest digits, exponent below 1e-6 and from 1e21 on.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let shortest = format!("{:e}", value.abs());
    let (mantissa, exponent) = shortest.split_once('e').expect("scientific form");
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().expect("an exponent");
    let sign = if value < 0.0 { "-" } else { "" };
    let point = exponent + 1;
    let count = digits.len() as i32;
    let body = match point {
        p if p >= count && p <= 21 => format!("{digits}{}", "0".repeat((p - count) as usize)),
        p if p > 0 && p <= 21 => format!("{}.{}", &digits[..p as usize], &digits[p as usize..]),
        p if p > -6 && p <= 0 => format!("0.{}{digits}", "0".repeat(-p as usize)),
        _ => {
            let rest = if count > 1 { format!(".{}", &digits[1..]) } else { String::new() };
            format!("{}{rest}e{}{}", &digits[..1], if exponent < 0 { "-" } else { "+" }, exponent.abs())
        }
    };
    format!("{sign}{body}")
}
