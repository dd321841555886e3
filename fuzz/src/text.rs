//! What users type and clients of the API send as names and sizes.

use stor_api::name::{self, Kind};
use stor_api::size;

/// Longest text that may be said about an input, for each of its bytes and besides.
const MOST_SAID: usize = 1 << 10;

pub(crate) fn sizes_and_names(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match size::parse(&text) {
        Ok(bytes) => {
            let shown = size::format(bytes);
            assert!(
                !shown.is_empty() && shown.len() < 32,
                "{bytes} is shown as {shown}"
            );
            if let Err(error) = size::check_volume(bytes) {
                short(&error.to_string(), input);
            }
        }
        Err(error) => short(&error.to_string(), input),
    }
    for kind in [Kind::Node, Kind::Pool, Kind::Class, Kind::Volume] {
        match name::check(kind, &text) {
            Ok(()) => assert!(text.is_ascii() && !text.is_empty(), "{text:?} is a name"),
            Err(error) => short(&error.to_string(), input),
        }
    }
    if let Err(error) = name::check_tags(&text.split(' ').map(str::to_owned).collect::<Vec<_>>()) {
        short(&error.to_string(), input);
    }
}

fn short(said: &str, input: &[u8]) {
    assert!(
        said.len() <= MOST_SAID + 8 * input.len(),
        "{} bytes are said",
        said.len()
    );
}
