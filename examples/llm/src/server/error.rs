//! Errors as OpenAI's clients read them.

use axum::Json;
use axum::http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request was not served.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl ApiError {
    /// A field outside its range. Clients show the message alone, so it names the field too.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("{param}: {}", message.into());
        Self::fields(&param, message)
    }

    /// Several fields, of which this is the first. The message names all of them.
    pub fn fields(param: &str, message: String) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
        }
    }

    /// A body that is not what was asked for.
    pub fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A body of a type or a coding that is not read.
    pub fn media(message: &str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// A body of more bytes than are read.
    pub fn large(most: usize) -> Self {
        let message = format!("the body has more than {most} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// More tokens than the model takes, because of this field.
    pub fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::field(param, message) }
    }

    /// No such model.
    pub fn no_model(name: &str) -> Self {
        Self {
            code: Some("model_not_found"),
            param: Some("model".to_owned()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("the model `{name}` is not here"),
            )
        }
    }

    /// Too many wait already.
    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            code: Some("queue_full"),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// The server is about to stop.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is shutting down")
    }

    /// The engine has failed, and takes no requests.
    pub fn no_engine() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the engine has stopped")
    }

    /// Nothing answers at this path; what does instead.
    pub fn no_path(method: &Method, path: &str, instead: Option<&str>) -> Self {
        let instead = instead.unwrap_or(
            "there are /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics",
        );
        let path: String = path.chars().take(200).collect();
        let message = format!("{method} {path} is not offered here: {instead}");
        Self {
            code: Some("unknown_url"),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    /// The path has other methods.
    pub fn no_method(method: &Method, allowed: &str) -> Self {
        let message = format!("{method} is not offered at this path, only {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// The engine failed.
    pub fn engine(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into() }
    }

    /// What clients read of it, also within a stream.
    pub fn body_json(&self) -> serde_json::Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        } })
    }
}

impl From<inflight::Error> for ApiError {
    fn from(error: inflight::Error) -> Self {
        match error {
            inflight::Error::QueueFull { .. } => Self::busy(error.to_string()),
            inflight::Error::PromptTooLong { .. } | inflight::Error::NeverFits { .. } => {
                Self::too_long("max_tokens", error.to_string())
            }
            other => Self::body(other.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body_json())).into_response();
        let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if later.contains(&self.status) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}
