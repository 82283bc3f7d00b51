//! The body of a request: a JSON object, maybe compressed.

use std::fmt;
use std::io::Read;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use flate2::read::MultiGzDecoder;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::shortened;

/// Bytes of a body at most, also when it is unpacked.
pub const MAX_BODY: usize = 16 << 20;

/// The fields of a request.
pub struct Body(pub Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = word(request.headers(), CONTENT_TYPE);
        if kind != "application/json"
            && !(kind.starts_with("application/") && kind.ends_with("+json"))
        {
            return Err(ApiError::media(
                "the body has to be JSON, with Content-Type: application/json",
            ));
        }
        let coding = word(request.headers(), CONTENT_ENCODING);
        let is_packed = match coding.as_str() {
            "" | "identity" => false,
            "gzip" | "x-gzip" => true,
            _ => {
                return Err(ApiError::media(
                    "the body may have Content-Encoding: gzip, and no other",
                ));
            }
        };
        let bytes =
            Bytes::from_request(request, state).await.map_err(|rejection| {
                match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => ApiError::large(MAX_BODY),
                    _ => ApiError::body(rejection.body_text()),
                }
            })?;
        // A large one takes a while, in which other clients get their tokens.
        tokio::task::block_in_place(|| match is_packed {
            true => parse(&unpack(&bytes)?),
            false => parse(&bytes),
        })
    }
}

/// What a header says before its parameters, in lower case.
fn word(headers: &HeaderMap, name: HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Unpacks a body, of which no more is kept than a body may have.
fn unpack(bytes: &[u8]) -> Result<Vec<u8>, ApiError> {
    let mut unpacked = Vec::new();
    let mut decoder = MultiGzDecoder::new(bytes).take(MAX_BODY as u64 + 1);
    decoder
        .read_to_end(&mut unpacked)
        .map_err(|error| ApiError::body(format!("the body is not gzip: {error}")))?;
    match unpacked.len() > MAX_BODY {
        true => Err(ApiError::large(MAX_BODY)),
        false => Ok(unpacked),
    }
}

fn parse(bytes: &[u8]) -> Result<Body, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Unique(Value::Object(fields))) => Ok(Body(fields)),
        Ok(_) => Err(ApiError::body("the body is JSON, but not an object")),
        Err(error) => Err(ApiError::body(format!("the body is not valid: {error}"))),
    }
}

/// A JSON value whose objects have each field once. Of two, serde_json would drop the first.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Unique(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, Unique(value))) = access.next_entry::<String, _>()? {
            if fields.contains_key(&name) {
                let name = shortened(&name);
                return Err(A::Error::custom(format_args!("the field `{name}` is there twice")));
            }
            fields.insert(name, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is_and_each_field_once() {
        let text =
            r#"{"a": [1, -2, 0.5, "\u00e9", true, null, {"a": {}}], "b": 18446744073709551615}"#;
        let Body(fields) = parse(text.as_bytes()).unwrap();
        assert_eq!(Value::from(fields), serde_json::from_str::<Value>(text).unwrap());
        for twice in [r#"{"n": 1, "n": 2}"#, r#"{"a": [{"n": 1, "m": 2, "n": null}]}"#] {
            let error = parse(twice.as_bytes()).err().expect(twice).body_json();
            let message = error["error"]["message"].as_str().expect("a text");
            assert!(message.contains("the field `n` is there twice"), "{message}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
