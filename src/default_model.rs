//! The model that is part of the binary, so that a fresh machine serves words with one command.
//!
//! What it is and how it was made: `engine/models/README.md`.

/// Its name on the wire.
pub const NAME: &str = "wren";

/// GGUF tensors lie at multiples of 32 bytes from the file's start.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!("../engine/models/wren.gguf"));

/// The GGUF file, aligned as a mapped one would be.
pub fn bytes() -> &'static [u8] {
    &FILE.0
}
