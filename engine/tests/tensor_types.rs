//! The slow pass's reading of tensor types against gguf-py's: `fixtures/tensor_types.json`. That the engine reads them as
//! the slow pass does is what `logits.rs` shows.

mod reference;

use orchestratord_engine::gguf::TensorType;
use serde_json::Value;

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hexadecimal").as_bytes();
    let digit = |d: u8| (d as char).to_digit(16).expect("a digit") as u8;
    text.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn every_type_is_read_as_its_inventors_read_it() {
    let text = include_str!("fixtures/tensor_types.json");
    let cases: Vec<Value> = serde_json::from_str(text).expect("the fixture is JSON");
    for case in &cases {
        let code = case["code"].as_u64().expect("a code") as u32;
        let bytes = unhex(&case["values"]);
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let got = reference::dequantise(code, &unhex(&case["bytes"]));
        assert_eq!(got.len(), values.len());
        let largest = values.iter().fold(0f32, |a, x| a.max(x.abs()));
        for (i, (got, wanted)) in got.iter().zip(&values).enumerate() {
            let error = (got - f64::from(*wanted)).abs();
            assert!(error <= 1e-6 * f64::from(largest), "{}: {got} and not {wanted} at {i}", case["name"]);
        }
    }
    let found = |code: u32| cases.iter().any(|case| case["code"] == code);
    // The others are numbers as they are.
    assert!(TensorType::all().all(|t| t.block_len() == 1 || found(t.code())), "a type has no fixture");
}
