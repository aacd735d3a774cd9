//! Small vocabularies of every kind against what their own libraries make of hard texts:
//! `tests/references/tokenizers.json`, made by `tests/make_tokenizer_references.py`.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::Tokenizer;
use crate::LoadError;
use crate::gguf::Gguf;
use crate::testing::Metadata;

fn sets(kind: &str) -> Vec<Json> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/tokenizers.json");
    let text = std::fs::read_to_string(path).expect("the references are there");
    let all: Json = serde_json::from_str(&text).expect("they are JSON");
    let of_kind = |set: &&Json| set["kind"] == kind;
    let found: Vec<Json> = list(&all["sets"]).iter().filter(of_kind).cloned().collect();
    assert!(!found.is_empty());
    found
}

fn list(value: &Json) -> &[Json] {
    value.as_array().expect("a list")
}

fn text(value: &Json) -> &str {
    value.as_str().expect("a string")
}

fn id(value: &Json) -> u32 {
    value.as_u64().expect("an id") as u32
}

fn ids(value: &Json) -> Vec<u32> {
    list(value).iter().map(id).collect()
}

fn read(metadata: Metadata) -> Result<Tokenizer, LoadError> {
    let bytes = metadata.into_file();
    Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("a sound file"))
}

/// A set's vocabulary as a GGUF file has it: tokens in order, and 3 for control, 4 for user-defined, 1 for others.
///
/// `last` takes the place of the last token, if it is given.
fn metadata_of_bpe(set: &Json, last: Option<&[u8]>) -> Metadata {
    let file = &set["tokenizer_json"];
    let vocab = file["model"]["vocab"].as_object().expect("an object").iter();
    let mut tokens: Vec<(u32, Vec<u8>, i32)> = vocab.map(|(name, i)| (id(i), name.clone().into_bytes(), 1)).collect();
    for added in list(&file["added_tokens"]) {
        let kind = if added["special"] == true { 3 } else { 4 };
        tokens.push((id(&added["id"]), text(&added["content"]).as_bytes().to_vec(), kind));
    }
    tokens.sort_by_key(|(id, ..)| *id);
    if let Some(last) = last {
        let end = tokens.last_mut().expect("there are tokens");
        (end.1, end.2) = (last.to_vec(), 1);
    }
    let merges = list(&file["model"]["merges"]).iter().map(|m| format!("{} {}", text(&m[0]), text(&m[1])));
    let mut m = Metadata::default();
    m.string("tokenizer.ggml.model", "gpt2");
    m.string("tokenizer.ggml.pre", text(&set["name"]));
    m.strings("tokenizer.ggml.tokens", &tokens.iter().map(|(_, name, _)| name).collect::<Vec<_>>());
    m.i32s("tokenizer.ggml.token_type", &tokens.iter().map(|(.., kind)| *kind).collect::<Vec<_>>());
    m.strings("tokenizer.ggml.merges", &merges.collect::<Vec<_>>());
    m.u32("tokenizer.ggml.bos_token_id", id(&set["bos"]));
    m.bool("tokenizer.ggml.add_bos_token", true);
    m
}

fn check(tokenizer: &Tokenizer, set: &Json) {
    for case in list(&set["cases"]) {
        let (name, input, wanted) = (&set["name"], text(&case["text"]), ids(&case["ids"]));
        assert_eq!(tokenizer.encode(input, false, true), wanted, "{name}: {input:?}");
        assert_eq!(tokenizer.encode(input, false, false), ids(&case["plain_ids"]), "{name}, plain: {input:?}");
        let with_bos = [&[id(&set["bos"])], &wanted[..]].concat();
        assert_eq!(tokenizer.encode(input, true, true), with_bos, "{name}, with the first token: {input:?}");
        assert_eq!(tokenizer.decode(&wanted, true), text(&case["decoded"]), "{name}: {input:?}");
    }
}

#[test]
fn byte_level_vocabularies_from_metadata_encode_as_their_own_library() {
    for set in sets("bpe") {
        check(&read(metadata_of_bpe(&set, None)).expect("a sound vocabulary"), &set);
    }
}

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn with_tokenizer(name: &str, tokenizer: &Json) -> Folder {
        Folder::with(name, "tokenizer.json", tokenizer.to_string().as_bytes())
    }

    fn with(name: &str, file: &str, bytes: &[u8]) -> Folder {
        let path = std::env::temp_dir().join(format!("orchestratord-tokenizer-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder can be made");
        std::fs::write(path.join(file), bytes).expect("it can be written to");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_tokenizer_json_encodes_as_its_own_library() {
    let config = json!({ "bos_token": { "content": "<|begin|>" }, "eos_token": "<|end|>" });
    for set in sets("bpe") {
        let folder = Folder::with_tokenizer(text(&set["name"]), &set["tokenizer_json"]);
        let generation = json!({ "eos_token_id": [3, 4] });
        let tokenizer = Tokenizer::from_folder(&folder.0, &config, &[&generation]).expect("a sound tokenizer");
        check(&tokenizer, &set);
        assert_eq!(tokenizer.bos(), Some(id(&set["bos"])));
        // Those that are listed, the one that is named, and one that all models call so.
        let ends: Vec<&str> = tokenizer
            .ends_of_generation()
            .iter()
            .skip(2)
            .map(|t| tokenizer.token_name(*t).unwrap_or_default())
            .collect();
        assert_eq!(ends.iter().filter(|name| ["<|end|>", "<|im_end|>"].contains(name)).count(), 2, "{ends:?}");
    }
}

fn metadata_of_spm(set: &Json) -> Metadata {
    let mut m = Metadata::default();
    m.string("tokenizer.ggml.model", "llama");
    let pieces: Vec<String> = list(&set["pieces"]).iter().map(|p| text(p).to_owned()).collect();
    m.strings("tokenizer.ggml.tokens", &pieces);
    m.f32s(
        "tokenizer.ggml.scores",
        &list(&set["scores"]).iter().map(|s| s.as_f64().unwrap() as f32).collect::<Vec<_>>(),
    );
    m.i32s("tokenizer.ggml.token_type", &list(&set["kinds"]).iter().map(|k| id(k) as i32).collect::<Vec<_>>());
    m.u32("tokenizer.ggml.bos_token_id", id(&set["bos"]));
    m.u32("tokenizer.ggml.eos_token_id", id(&set["eos"]));
    m.bool("tokenizer.ggml.add_space_prefix", set["add_space"] == true);
    m
}

#[test]
fn sentence_piece_vocabularies_encode_as_their_own_library() {
    for set in sets("spm") {
        let tokenizer = read(metadata_of_spm(&set)).expect("a sound vocabulary");
        for case in list(&set["cases"]) {
            let (name, input, wanted) = (&set["name"], text(&case["text"]), ids(&case["ids"]));
            assert_eq!(tokenizer.encode(input, false, false), wanted, "{name}: {input:?}");
            assert_eq!(tokenizer.decode(&wanted, false), text(&case["decoded"]), "{name}: {input:?}");
        }
        let control = tokenizer.encode("a</s>", true, true);
        assert_eq!((control.first(), control.last()), (tokenizer.bos().as_ref(), tokenizer.eos().as_ref()));
    }
}

/// The file of the set as `sentencepiece` wrote it.
fn tokenizer_model(set: &Json) -> Vec<u8> {
    let digits = text(&set["tokenizer_model"]).as_bytes();
    let nibble = |digit: u8| (digit as char).to_digit(16).expect("hexadecimal") as u8;
    digits.as_chunks::<2>().0.iter().map(|[high, low]| nibble(*high) << 4 | nibble(*low)).collect()
}

#[test]
fn a_tokenizer_model_encodes_as_its_own_library_and_as_from_metadata() {
    for set in sets("spm") {
        let folder = Folder::with(text(&set["name"]), "tokenizer.model", &tokenizer_model(&set));
        let tokenizer = Tokenizer::from_folder(&folder.0, &Json::Null, &[]).expect("a sound tokenizer");
        let from_metadata = read(metadata_of_spm(&set)).expect("a sound vocabulary");
        assert_eq!(tokenizer.vocab_len(), from_metadata.vocab_len());
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (from_metadata.bos(), from_metadata.eos()));
        assert_eq!(tokenizer.ends_of_generation(), from_metadata.ends_of_generation());
        for case in list(&set["cases"]) {
            let (name, input, wanted) = (&set["name"], text(&case["text"]), ids(&case["ids"]));
            assert_eq!(tokenizer.encode(input, false, false), wanted, "{name}: {input:?}");
            assert_eq!(tokenizer.decode(&wanted, false), text(&case["decoded"]), "{name}: {input:?}");
            for (bos, special) in [(true, true), (true, false), (false, true)] {
                let (a, b) = (tokenizer.encode(input, bos, special), from_metadata.encode(input, bos, special));
                assert_eq!(a, b, "{name}: {input:?}");
            }
        }
    }
}

#[test]
fn tokens_that_were_added_to_a_tokenizer_model_are_found() {
    let set = &sets("spm")[0];
    let folder = Folder::with("added", "tokenizer.model", &tokenizer_model(set));
    let len = list(&set["pieces"]).len();
    let mut config = json!({ "eos_token": "<|im_end|>", "add_bos_token": false, "add_eos_token": true });
    config["added_tokens_decoder"] = json!({
        (len + 1).to_string(): { "content": "<|im_end|>", "special": true },
        "2": { "content": "</s>", "special": true },
    });
    let tokenizer = Tokenizer::from_folder(&folder.0, &config, &[]).expect("a sound tokenizer");
    let end = len as u32 + 1;
    assert_eq!((tokenizer.vocab_len(), tokenizer.eos(), tokenizer.end_of_text()), (len + 2, Some(end), Some(end)));
    assert_eq!(tokenizer.encode("<|im_end|>", true, true), [end]);
    assert!(tokenizer.is_control(end) && !tokenizer.encode("<|im_end|>", true, false).contains(&end));
    config["added_tokens_decoder"] = json!({ "4000000000": { "content": "x" } });
    let refused = Tokenizer::from_folder(&folder.0, &config, &[]).expect_err("far out").to_string();
    assert!(refused.contains("added_tokens_decoder"), "{refused}");
    let nothing = Folder::with("nothing", "README", b"");
    let refused = Tokenizer::from_folder(&nothing.0, &Json::Null, &[]).expect_err("no file").to_string();
    assert!(refused.contains("tokenizer.json") && refused.contains("tokenizer.model"), "{refused}");
}

#[test]
fn a_vocabulary_need_not_be_utf_8() {
    let set = &sets("bpe")[0];
    let before = read(metadata_of_bpe(set, None)).expect("a sound vocabulary");
    // Two bytes that are no character, and none that text could become.
    let tokenizer = read(metadata_of_bpe(set, Some(b"\xff\xc3"))).expect("it is read all the same");
    let last = tokenizer.vocab_len() as u32 - 1;
    assert_eq!(tokenizer.token_bytes(last), b"\xff\xc3");
    assert_eq!(tokenizer.decode(&[last], true), "\u{fffd}\u{fffd}");
    for case in list(&set["cases"]) {
        let wanted = before.encode(text(&case["text"]), false, true);
        if !wanted.contains(&last) {
            assert_eq!(tokenizer.encode(text(&case["text"]), false, true), wanted);
        }
    }
    assert_eq!(tokenizer.encode("\u{fffd}\u{fffd}", false, true), before.encode("\u{fffd}\u{fffd}", false, true));
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let said = |fill: &dyn Fn(&mut Metadata)| {
        let mut metadata = Metadata::default();
        fill(&mut metadata);
        read(metadata).expect_err("it is refused").to_string()
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Metadata));
    let cases: [Case<'_>; 5] = [
        ("tokenizer.ggml.model", &|_| {}),
        ("\"bert\"", &|m| m.string("tokenizer.ggml.model", "bert")),
        ("tokenizer.ggml.tokens", &|m| m.string("tokenizer.ggml.model", "llama")),
        ("tokenizer.ggml.scores", &|m| {
            m.string("tokenizer.ggml.model", "llama");
            m.strings("tokenizer.ggml.tokens", &["a", "b"]);
        }),
        ("\"other\"", &|m| {
            m.string("tokenizer.ggml.model", "gpt2");
            m.string("tokenizer.ggml.pre", "other");
            m.strings("tokenizer.ggml.tokens", &["a", "b"]);
        }),
    ];
    for (wanted, fill) in cases {
        let said = said(fill);
        assert!(said.contains(wanted), "{said}");
    }
}
