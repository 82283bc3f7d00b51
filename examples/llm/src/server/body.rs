//! The body of a request: a JSON object, maybe compressed.

use std::io::Read;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::error::ApiError;

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
        Ok(Value::Object(fields)) => Ok(Body(fields)),
        Ok(_) => Err(ApiError::body("the body is JSON, but not an object")),
        Err(error) => Err(ApiError::body(format!("the body is not JSON: {error}"))),
    }
}
