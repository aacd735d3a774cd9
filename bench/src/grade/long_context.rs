//! The built-in model as a file that promises a longer context.
//!
//! It was trained on 2048 tokens, and what it says beyond them is nonsense. A step there costs what it costs with any
//! model of its shape, and that is what is measured.

use std::path::PathBuf;

use uuid::Uuid;

/// Name of the file and of the model.
pub const NAME: &str = "wren-long";

/// How a GGUF file says it: the key, and the type of what follows, a 32-bit number.
const KEY: &[u8] = b"llama.context_length\x04\x00\x00\x00";

/// A file in a folder of its own, which goes with it.
pub struct LongContext(PathBuf);

impl LongContext {
    pub fn write(context_len: u32) -> Result<LongContext, String> {
        let bytes = stretched(orchestratord::default_model::bytes(), context_len)?;
        let folder = std::env::temp_dir().join(format!("orchestratord-bench-{}", Uuid::new_v4()));
        let model = LongContext(folder);
        let fail = |e: std::io::Error| format!("{}: {e}", model.0.display());
        std::fs::create_dir_all(&model.0).map_err(fail)?;
        std::fs::write(model.path(), bytes).map_err(fail)?;
        Ok(model)
    }

    pub fn path(&self) -> PathBuf {
        self.0.join(NAME).with_extension("gguf")
    }
}

impl Drop for LongContext {
    fn drop(&mut self) {
        // What is left in a folder for temporary files harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same file with another context length.
fn stretched(file: &[u8], context_len: u32) -> Result<Vec<u8>, String> {
    let mut places = file.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).map(|(at, _)| at);
    let at = places.next().ok_or("the built-in model names no context length")? + KEY.len();
    if places.next().is_some() {
        return Err("the built-in model names its context length twice".into());
    }
    let mut bytes = file.to_vec();
    bytes[at..at + 4].copy_from_slice(&context_len.to_le_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestratord_engine::Model;

    #[test]
    fn only_the_context_is_longer_and_nothing_is_left_behind() {
        let short = Model::from_static(orchestratord::default_model::bytes()).expect("it is sound");
        let file = LongContext::write(9000).expect("it is written");
        let long = Model::open(&file.path()).expect("it is sound");
        assert_eq!(long.info().context_length, 9000);
        let text = "the little dog ran to a big tree";
        let tokens = |model: &Model| model.tokenizer().encode(text, true, false);
        assert_eq!(tokens(&long), tokens(&short));
        let path = file.path();
        drop(file);
        assert!(path.parent().is_some_and(|folder| !folder.exists()), "{path:?}");
    }
}
