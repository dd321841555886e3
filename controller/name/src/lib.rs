//! What a name, a tag and a property may be.
//!
//! A name is one or more parts joined by dots; each part is lower-case letters, digits and hyphens and begins
//! and ends with a letter or digit; 63 characters at most. That is a DNS name that also fits a Kubernetes
//! object name *and* label value, and a file name that needs no quoting anywhere: a volume's name becomes
//! `/dev/stor/NAME`, an NBD export and a directory entry as it stands. There is no case to confuse.
//!
//! Promises: a checked name is never `.` or `..`, has no `/`, no white space and no character a shell reads.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

/// Longest name, characters.
pub const MAX_NAME: usize = 63;
/// Longest tag, characters.
pub const MAX_TAG: usize = 63;
/// Most tags on one object.
pub const MAX_TAGS: usize = 32;
/// Longest key of a property, characters.
pub const MAX_PROPERTY_KEY: usize = 128;
/// Longest value of a property, bytes.
pub const MAX_PROPERTY_VALUE: usize = 255;
/// Most properties on one node.
pub const MAX_PROPERTIES: usize = 64;

/// Name of the snapshot that is made for a volume of that name.
pub fn of_clone(volume: &str) -> String {
    let whole = format!("clone-{volume}");
    if whole.len() <= MAX_NAME {
        return whole;
    }
    // Volumes whose names begin alike are told apart by the rest: FNV-1a.
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = volume.bytes().fold(0x811c_9dc5, mix);
    let begin: String = whole.chars().take(MAX_NAME - 9).collect();
    format!("{}-{hash:08x}", begin.trim_end_matches(['-', '.']))
}

/// Words that mean something else where a name may stand.
pub const RESERVED: [&str; 4] = ["all", "none", "self", "new"];

/// What is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A machine.
    Node,
    /// A pool.
    Pool,
    /// A class.
    Class,
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A controller.
    Controller,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Pool => "pool",
            Self::Class => "class",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Controller => "controller",
        })
    }
}

/// The form a name must have, for messages.
pub const NAME_FORM: &str = "1 to 63 lower-case letters, digits, hyphens and dots, every part between dots \
                             beginning and ending with a letter or digit";
const TAG_FORM: &str = "1 to 63 letters, digits, hyphens, underscores and dots, beginning and ending with a \
                        letter or digit";
const KEY_FORM: &str = "1 to 128 letters, digits, hyphens, underscores, dots and slashes, beginning and \
                        ending with a letter or digit";

/// Why a name, tag or property is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing there.
    #[error("the name of a {kind} is empty; allowed are {NAME_FORM}")]
    Empty {
        /// What was to be named.
        kind: Kind,
    },
    /// More than [`MAX_NAME`].
    #[error("the name of a {kind} has {length} characters; at most {MAX_NAME} are allowed")]
    TooLong {
        /// What was to be named.
        kind: Kind,
        /// Characters it has.
        length: usize,
    },
    /// A character that may not be in a name.
    #[error("{name:?} can't name a {kind}: {found:?} is not allowed; allowed are {NAME_FORM}")]
    Character {
        /// What was to be named.
        kind: Kind,
        /// The name.
        name: String,
        /// The first such character.
        found: char,
    },
    /// Begins or ends with a hyphen or dot, or has them around a dot.
    #[error(
        "{name:?} can't name a {kind}: its parts must begin and end with a letter or digit; allowed are {NAME_FORM}"
    )]
    Part {
        /// What was to be named.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// One of [`RESERVED`].
    #[error("{name:?} can't name a {kind}: the word is reserved; choose another name")]
    Reserved {
        /// What was to be named.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// Not a tag.
    #[error("{tag:?} is not a tag; allowed are {TAG_FORM}")]
    Tag {
        /// What was given, cut to a printable length.
        tag: String,
    },
    /// The same tag twice.
    #[error("the tag {tag:?} is given twice")]
    TagTwice {
        /// The tag.
        tag: String,
    },
    /// More than [`MAX_TAGS`].
    #[error("{count} tags are given; at most {MAX_TAGS} are allowed")]
    TooManyTags {
        /// How many.
        count: usize,
    },
    /// Not the key of a property.
    #[error("{key:?} is not the key of a property; allowed are {KEY_FORM}")]
    PropertyKey {
        /// What was given, cut to a printable length.
        key: String,
    },
    /// Not the value of a property.
    #[error("the value of property {key:?} has control characters or more than {MAX_PROPERTY_VALUE} bytes")]
    PropertyValue {
        /// Its key.
        key: String,
    },
    /// More than [`MAX_PROPERTIES`].
    #[error("{count} properties are given; at most {MAX_PROPERTIES} are allowed")]
    TooManyProperties {
        /// How many.
        count: usize,
    },
}

/// Checks the name of a new object.
pub fn check(kind: Kind, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    let length = name.chars().count();
    if length > MAX_NAME {
        return Err(NameError::TooLong { kind, length });
    }
    let owned = || name.to_owned();
    if let Some(found) = name.chars().find(|c| !is_name_character(*c)) {
        return Err(NameError::Character {
            kind,
            name: owned(),
            found,
        });
    }
    if name
        .split('.')
        .any(|part| part.is_empty() || part.starts_with('-') || part.ends_with('-'))
    {
        return Err(NameError::Part { kind, name: owned() });
    }
    if RESERVED.contains(&name) {
        return Err(NameError::Reserved { kind, name: owned() });
    }
    Ok(())
}

/// Checks the tags of one object.
pub fn check_tags(tags: &[String]) -> Result<(), NameError> {
    if tags.len() > MAX_TAGS {
        return Err(NameError::TooManyTags { count: tags.len() });
    }
    let mut seen = std::collections::BTreeSet::new();
    for tag in tags {
        if !is_label(tag, MAX_TAG, &['-', '_', '.']) {
            return Err(NameError::Tag { tag: printable(tag) });
        }
        if !seen.insert(tag) {
            return Err(NameError::TagTwice { tag: tag.clone() });
        }
    }
    Ok(())
}

/// Checks the key of a property, as `--property`, `spread` and `together` name one.
pub fn check_property_key(key: &str) -> Result<(), NameError> {
    if is_label(key, MAX_PROPERTY_KEY, &['-', '_', '.', '/']) {
        Ok(())
    } else {
        Err(NameError::PropertyKey { key: printable(key) })
    }
}

/// Checks the properties of one node. An empty value is allowed: it removes the property.
pub fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), NameError> {
    if properties.len() > MAX_PROPERTIES {
        return Err(NameError::TooManyProperties {
            count: properties.len(),
        });
    }
    for (key, value) in properties {
        check_property_key(key)?;
        if value.len() > MAX_PROPERTY_VALUE || value.chars().any(char::is_control) {
            return Err(NameError::PropertyValue { key: key.clone() });
        }
    }
    Ok(())
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.'
}

fn is_label(text: &str, longest: usize, inner: &[char]) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= longest
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || inner.contains(&c))
}

/// What a message quotes of something that may be megabytes of anything.
fn printable(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_pass() {
        let longest = "a".repeat(MAX_NAME);
        let other = format!("{}b", "a".repeat(MAX_NAME - 1));
        assert_eq!(of_clone("db2"), "clone-db2");
        assert_ne!(of_clone(&longest), of_clone(&other));
        for name in [
            &longest,
            &other,
            &format!("{}.{}", "a".repeat(47), "b".repeat(10)),
        ] {
            check(Kind::Snapshot, &of_clone(name)).unwrap();
        }
        for name in [
            "db1",
            "s1",
            "0",
            "vm-100-disk-0",
            "pvc-0a1b",
            "node1.example.com",
            longest.as_str(),
        ] {
            assert_eq!(check(Kind::Volume, name), Ok(()), "{name}");
        }
    }

    #[test]
    fn others_are_refused_each_with_its_reason() {
        let kind = Kind::Volume;
        let name = |n: &str| n.to_owned();
        assert_eq!(check(kind, ""), Err(NameError::Empty { kind }));
        assert_eq!(
            check(kind, &"a".repeat(64)),
            Err(NameError::TooLong { kind, length: 64 })
        );
        for (given, found) in [
            ("DB1", 'D'),
            ("a b", ' '),
            ("a/b", '/'),
            ("a_b", '_'),
            ("ä", 'ä'),
            ("a\n", '\n'),
        ] {
            assert_eq!(
                check(kind, given),
                Err(NameError::Character {
                    kind,
                    name: name(given),
                    found
                })
            );
        }
        for given in [".", "..", "-a", "a-", ".a", "a.", "a..b", "a.-b", "a-.b"] {
            assert_eq!(
                check(kind, given),
                Err(NameError::Part {
                    kind,
                    name: name(given)
                }),
                "{given}"
            );
        }
        for given in RESERVED {
            assert_eq!(
                check(kind, given),
                Err(NameError::Reserved {
                    kind,
                    name: name(given)
                })
            );
        }
    }

    #[test]
    fn a_refusal_says_the_allowed_form() {
        let told = check(Kind::Pool, "My Pool").unwrap_err().to_string();
        assert!(
            told.contains("can't name a pool") && told.contains("'M'") && told.contains(NAME_FORM),
            "{told}"
        );
    }

    #[test]
    fn tags_and_properties() {
        let tags = |t: &[&str]| check_tags(&t.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(tags(&["nvme", "Rack_2", "gen4.1"]), Ok(()));
        assert_eq!(tags(&["a", "a"]), Err(NameError::TagTwice { tag: "a".into() }));
        for bad in ["", "-a", "a b", "a,b"] {
            assert_eq!(tags(&[bad]), Err(NameError::Tag { tag: bad.into() }));
        }
        let many: Vec<String> = (0..33).map(|i| format!("t{i}")).collect();
        assert_eq!(check_tags(&many), Err(NameError::TooManyTags { count: 33 }));

        let one = |k: &str, v: &str| check_properties(&BTreeMap::from([(k.to_owned(), v.to_owned())]));
        assert_eq!(one("topology.kubernetes.io/zone", "eu west 1"), Ok(()));
        assert_eq!(one("zone", ""), Ok(()));
        assert_eq!(
            one("/zone", "a"),
            Err(NameError::PropertyKey { key: "/zone".into() })
        );
        assert_eq!(
            one("zone", "a\u{7}"),
            Err(NameError::PropertyValue { key: "zone".into() })
        );
        assert_eq!(
            one("zone", &"x".repeat(256)),
            Err(NameError::PropertyValue { key: "zone".into() })
        );
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_a_safe_file_name(name in "\\PC{0,70}|[a-z0-9.-]{1,70}") {
            if check(Kind::Volume, &name).is_ok() {
                let path = std::path::Path::new("/dev/stor").join(&name);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/dev/stor")));
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
                prop_assert!(name.len() <= MAX_NAME && name.is_ascii());
            }
        }
    }
}
