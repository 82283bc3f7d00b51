//! One JSON object a line, its values left as they are spelt until a format asks for them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::field::{Fault, Field};
use super::formats::Format;

/// The fields of a line, in its order.
pub(super) struct Object<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// # Errors
    /// The line is not one JSON object.
    pub(super) fn parse(line: &'a str) -> Result<Self, Fault> {
        serde_json::from_str(line).map_err(|error| {
            let column = error.column();
            Fault::Line(format!("not a JSON object: {} at column {column}", reason(&error)))
        })
    }

    /// # Errors
    /// A field is none of the format's, or there twice.
    pub(super) fn only(&self, format: &Format) -> Result<(), Fault> {
        for (position, (name, _)) in self.fields.iter().enumerate() {
            if !format.names().any(|known| known == name) {
                let known = format.names().collect::<Vec<_>>().join(", ");
                let reason =
                    format!("unknown: remove it if it does not matter; the format has {known}");
                return Err(Fault::field(name, reason));
            }
            if self.fields[..position].iter().any(|(earlier, _)| earlier == name) {
                return Err(Fault::field(name, "given twice: remove one"));
            }
        }
        Ok(())
    }

    /// Whether there is a field `name`; `null` counts as absent.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, value)| field == name && value.get() != "null")
    }

    /// The field `name`; `null` counts as absent.
    pub(super) fn get(&self, name: &'static str) -> Option<Field<'a>> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name)?;
        Some(Field { name, text: value.get() }).filter(|field| field.text != "null")
    }

    /// The field `name`, which must be there.
    pub(super) fn require(&self, name: &'static str) -> Result<Field<'a>, Fault> {
        self.get(name).ok_or_else(|| Fault::field(name, "missing"))
    }
}

/// What is wrong with a line, without serde_json's own position: it always says line 1.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl Field<'_> {
    /// The value as `T`, which an error calls `what`.
    pub(super) fn json<T: DeserializeOwned>(self, what: &str) -> Result<T, Fault> {
        serde_json::from_str(self.text).map_err(|_| self.not(what))
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Object { fields })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A field's name, which is a copy only where it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
