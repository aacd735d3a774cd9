//! Which of a repository's files make a model that can be served.

use crate::cli::Failure;

/// Files of a Hugging Face folder that the engine reads, beside its weights.
const FOLDER: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "1_Pooling/config.json",
];

/// Names that a message lists.
const SHOWN_MAX: usize = 20;

/// The files to load, in the order of the repository. With `file` that one; else the whole folder where it is one, or the only
/// GGUF file.
///
/// # Errors
///
/// Saying what there is to choose from.
pub fn wanted<'a>(files: &'a [String], file: Option<&str>, repository: &str) -> Result<Vec<&'a str>, Failure> {
    if let Some(name) = file {
        let found = files.iter().find(|f| *f == name).map(|f| vec![f.as_str()]);
        return found.ok_or_else(|| {
            Failure::Failed(format!("{repository} has no file {name:?}; {}", choice(&models(files), repository)))
        });
    }
    let ggufs = models(files);
    let weights = |name: &str| name.ends_with(".safetensors") && !name.contains('/');
    let is_folder = files.iter().any(|f| f == "config.json") && files.iter().any(|f| weights(f));
    match (&ggufs[..], is_folder) {
        (_, true) => Ok(files.iter().map(String::as_str).filter(|f| FOLDER.contains(f) || weights(f)).collect()),
        ([only], false) => Ok(vec![only]),
        ([], false) => Err(Failure::Failed(format!(
            "{repository} has neither a GGUF file nor config.json with safetensors: there is nothing here that could be served"
        ))),
        (several, false) => {
            Err(Failure::Failed(format!("{repository} has several models: name one; {}", choice(several, repository))))
        }
    }
}

fn models(files: &[String]) -> Vec<&str> {
    files.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect()
}

fn choice(names: &[&str], repository: &str) -> String {
    let mut text = match names.is_empty() {
        true => return "it has no GGUF file".to_owned(),
        false => "there are".to_owned(),
    };
    for name in names.iter().take(SHOWN_MAX) {
        text.push_str(&format!(" hf:{repository}/{name}"));
    }
    if names.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", names.len() - SHOWN_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_loaded_whole_and_a_file_alone() {
        let files = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<String>>();
        let folder =
            files(&["README.md", "config.json", "model.safetensors", "onnx/model.safetensors", "tokenizer.json"]);
        let some = |f: &[String], file| {
            wanted(f, file, "o/r").map(|v| v.join(" ")).unwrap_or_else(|e| match e {
                Failure::Failed(text) => text,
                _ => unreachable!(),
            })
        };
        assert_eq!(some(&folder, None), "config.json model.safetensors tokenizer.json");
        assert_eq!(some(&folder, Some("README.md")), "README.md");
        assert_eq!(some(&files(&["a.gguf", "README.md"]), None), "a.gguf");
        assert!(some(&files(&["a.gguf", "b.gguf"]), None).contains("hf:o/r/a.gguf hf:o/r/b.gguf"));
        assert!(some(&files(&["a.gguf"]), Some("c.gguf")).contains("hf:o/r/a.gguf"));
        assert!(some(&files(&["README.md"]), None).contains("neither"));
    }
}
