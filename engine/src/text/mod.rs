//! Between text and tokens: both ways, piece by piece, up to a stop string, and from a conversation.

mod byte_level;
mod chat;
mod detokenizer;
mod stop;
mod strftime;
mod tokenizer;

pub(crate) use byte_level::char_of;
pub use chat::{ChatMessage, ChatTemplate, TemplateError, ToolCall};
pub use detokenizer::Detokenizer;
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
pub(crate) use tokenizer::file_in as tokenizer_file;
