//! What a model says about itself, a GGUF file's metadata or a Hugging Face folder's `config.json`, asked in one way.

use serde_json::Value as Json;

use crate::LoadError;
use crate::gguf::Gguf;

/// Bound that no sound file exceeds; products of two such lengths fit `usize`.
const LENGTH_MAX: u64 = 1 << 24;

/// A setting by its names in both formats; one that is empty says that the format does not have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// After the architecture's name and a dot.
    pub gguf: &'static str,
    pub hf: &'static str,
}

pub(crate) enum Settings<'a> {
    Gguf { gguf: &'a Gguf<'a>, architecture: &'a str },
    HuggingFace { config: &'a Json, architecture: &'a str },
}

impl<'a> Settings<'a> {
    /// # Errors
    ///
    /// When the file does not name its architecture.
    pub fn of_gguf(gguf: &'a Gguf<'a>) -> Result<Settings<'a>, LoadError> {
        let key = "general.architecture";
        let architecture = gguf.string(key)?.ok_or_else(|| LoadError::missing(format!("metadata key {key:?}")))?;
        Ok(Settings::Gguf { gguf, architecture })
    }

    /// A model of several kinds of input keeps what concerns text in a part of its own.
    ///
    /// # Errors
    ///
    /// When the configuration does not name its architecture.
    pub fn of_config(config: &'a Json) -> Result<Settings<'a>, LoadError> {
        let config = config.get("text_config").filter(|text| text.is_object()).unwrap_or(config);
        let architecture = config["model_type"].as_str();
        let architecture = architecture.ok_or_else(|| LoadError::missing("\"model_type\" in config.json"))?;
        Ok(Settings::HuggingFace { config, architecture })
    }

    pub fn architecture(&self) -> &'a str {
        match self {
            Settings::Gguf { architecture, .. } | Settings::HuggingFace { architecture, .. } => architecture,
        }
    }

    pub fn is_gguf(&self) -> bool {
        matches!(self, Settings::Gguf { .. })
    }

    /// `config.json`, if that is what it is.
    pub fn config(&self) -> Option<&'a Json> {
        match self {
            Settings::Gguf { .. } => None,
            Settings::HuggingFace { config, .. } => Some(config),
        }
    }

    /// Where a setting stands, for messages.
    pub fn place(&self, key: Key) -> String {
        match self {
            Settings::Gguf { architecture, .. } => format!("metadata key \"{architecture}.{}\"", key.gguf),
            Settings::HuggingFace { .. } => format!("{:?} in config.json", key.hf),
        }
    }

    /// True when the setting is there, even as null.
    pub fn has(&self, key: Key) -> bool {
        match self {
            Settings::Gguf { gguf, architecture } => gguf.value(&format!("{architecture}.{}", key.gguf)).is_some(),
            Settings::HuggingFace { config, .. } => config.get(key.hf).is_some(),
        }
    }

    /// A whole number, if it is there and not null.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn count(&self, key: Key) -> Result<Option<u64>, LoadError> {
        match self {
            _ if self.name(key).is_empty() => Ok(None),
            Settings::Gguf { gguf, architecture } => {
                Ok(gguf.u32(&format!("{architecture}.{}", key.gguf))?.map(u64::from))
            }
            Settings::HuggingFace { config, .. } => match &config[key.hf] {
                Json::Null => Ok(None),
                value => value.as_u64().map(Some).ok_or_else(|| self.wrong(key, "must be a whole number")),
            },
        }
    }

    /// A length from 1 to `LENGTH_MAX`, if it is there.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn length(&self, key: Key) -> Result<Option<usize>, LoadError> {
        match self.count(key)? {
            Some(n) if n == 0 || n > LENGTH_MAX => {
                Err(self.wrong(key, &format!("{n} is not within 1 to {LENGTH_MAX}")))
            }
            n => Ok(n.map(|n| n as usize)),
        }
    }

    /// A length that no model can do without.
    ///
    /// # Errors
    ///
    /// When it is not there, or something else.
    pub fn needed_length(&self, key: Key) -> Result<usize, LoadError> {
        self.length(key)?.ok_or_else(|| LoadError::missing(self.place(key)))
    }

    /// A finite number, if it is there and not null.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn number(&self, key: Key) -> Result<Option<f64>, LoadError> {
        let number = match self {
            _ if self.name(key).is_empty() => None,
            Settings::Gguf { gguf, architecture } => gguf.f32(&format!("{architecture}.{}", key.gguf))?.map(f64::from),
            Settings::HuggingFace { config, .. } => match &config[key.hf] {
                Json::Null => None,
                value => Some(value.as_f64().ok_or_else(|| self.wrong(key, "must be a number"))?),
            },
        };
        match number {
            Some(x) if !x.is_finite() => Err(self.wrong(key, &format!("{x} is not finite"))),
            x => Ok(x),
        }
    }

    /// A number above zero, if it is there and not null.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn positive(&self, key: Key) -> Result<Option<f64>, LoadError> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(self.wrong(key, &format!("{x} is not above 0"))),
            x => Ok(x),
        }
    }

    /// A string, if it is there.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn text(&self, key: Key) -> Result<Option<&'a str>, LoadError> {
        match self {
            _ if self.name(key).is_empty() => Ok(None),
            Settings::Gguf { gguf, architecture } => gguf.string(&format!("{architecture}.{}", key.gguf)),
            Settings::HuggingFace { config, .. } => match &config[key.hf] {
                Json::Null => Ok(None),
                value => value.as_str().map(Some).ok_or_else(|| self.wrong(key, "must be a string")),
            },
        }
    }

    /// What is wrong with a setting.
    pub fn wrong(&self, key: Key, why: &str) -> LoadError {
        LoadError::corrupt(self.place(key), why)
    }

    fn name(&self, key: Key) -> &'static str {
        if self.is_gguf() { key.gguf } else { key.hf }
    }
}
