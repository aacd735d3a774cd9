//! HTTP/1.1 and SSE as a codec: bytes to values and back. Knows no sockets.

pub mod chunked;
pub mod head;
pub mod response;
mod scan;
pub mod sse;

pub use head::{Body, HeadIndex, RequestHead, head_for_tests};
pub use response::Response;
pub use scan::find_end;

use std::fmt;

/// What is wrong with a request, as far as HTTP is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpError {
    status: u16,
    message: &'static str,
}

impl HttpError {
    pub const fn new(status: u16, message: &'static str) -> HttpError {
        HttpError { status, message }
    }

    pub const fn status(&self) -> u16 {
        self.status
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)
    }
}
