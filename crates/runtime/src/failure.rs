//! Errors as one line of text, for the wire between shim and agent.

use std::error::Error;

/// The error and every cause, joined by `: `. A cause that the text before it already ends with is
/// left out, since not every library keeps sources out of its messages.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
