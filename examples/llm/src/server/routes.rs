//! Where what is answered, and what is said elsewhere.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header::{ALLOW, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::body::MAX_BODY;
use super::error::ApiError;
use super::{Server, chat, completions, figures, health, model, models};

/// Names the fields of a request that had no effect on its answer.
pub const IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-ignored-fields");

/// Characters of that header, about.
const MAX_HEADER: usize = 2048;

const GETS: &str = "GET, HEAD, OPTIONS";
const POSTS: &str = "POST, OPTIONS";
const CHAT: &str = "use POST /v1/chat/completions";
const COMPLETIONS: &str = "use POST /v1/completions";
const NO_OTHER: &str = "this server offers text completions alone, see /v1/chat/completions";

/// Beginnings of paths that clients know from elsewhere, and what there is instead.
const ELSEWHERE: [(&str, &str); 34] = [
    ("/v1/responses", CHAT),
    ("/v1/messages", CHAT),
    ("/v1/chat", CHAT),
    ("/v1/threads", CHAT),
    ("/v1/assistants", CHAT),
    ("/v1/conversations", CHAT),
    ("/v1/realtime", CHAT),
    ("/v1/engines", COMPLETIONS),
    ("/v1/edits", CHAT),
    ("/v1/batches", CHAT),
    ("/v1/embeddings", NO_OTHER),
    ("/v1/moderations", NO_OTHER),
    ("/v1/audio", NO_OTHER),
    ("/v1/images", NO_OTHER),
    ("/v1/videos", NO_OTHER),
    ("/v1/files", NO_OTHER),
    ("/v1/uploads", NO_OTHER),
    ("/v1/fine_tuning", NO_OTHER),
    ("/v1/vector_stores", NO_OTHER),
    ("/v1/rerank", NO_OTHER),
    ("/v1/score", NO_OTHER),
    ("/v1/health", "use GET /health"),
    ("/v1/metrics", "use GET /metrics"),
    // A base URL without /v1.
    ("/chat/completions", CHAT),
    ("/completions", COMPLETIONS),
    ("/models", "use GET /v1/models"),
    ("/responses", CHAT),
    ("/embeddings", NO_OTHER),
    // Other servers' own.
    ("/api/chat", CHAT),
    ("/api/tags", "use GET /v1/models"),
    ("/api/generate", COMPLETIONS),
    ("/completion", COMPLETIONS),
    ("/generate", COMPLETIONS),
    ("/invocations", CHAT),
];

/// All that is answered; browsers' pages of these origins may read it.
pub fn router(server: &'static Server, origins: &[HeaderValue]) -> Router {
    let mut router = Router::new();
    for (path, methods, allowed) in [
        ("/v1/completions", post(completions::completions), POSTS),
        ("/v1/chat/completions", post(chat::chat), POSTS),
        ("/v1/models", get(models), GETS),
        ("/health", get(health), GETS),
        ("/metrics", get(figures), GETS),
    ] {
        let methods = others(methods, allowed);
        router = router.route(path, methods.clone()).route(&format!("{path}/"), methods);
    }
    let router = router
        .route("/v1/models/{*id}", others(get(model), GETS))
        .fallback(no_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(server);
    match origins.is_empty() {
        true => router,
        false => router.layer(cors(origins)),
    }
}

/// Answers the methods that a path does not have.
fn others(
    methods: MethodRouter<&'static Server>,
    allowed: &'static str,
) -> MethodRouter<&'static Server> {
    methods.fallback(async move |method: Method| {
        let response = match method == Method::OPTIONS {
            true => StatusCode::NO_CONTENT.into_response(),
            false => ApiError::no_method(&method, allowed).into_response(),
        };
        ([(ALLOW, allowed)], response)
    })
}

async fn no_path(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let is_within = |beginning: &str| {
        let rest = path.strip_prefix(beginning);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let known = ELSEWHERE.iter().find(|(beginning, _)| is_within(beginning));
    ApiError::no_path(&method, path, known.map(|&(_, instead)| instead))
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origins = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        // Clients send headers of their own, such as X-Stainless-Lang.
        .allow_headers(AllowHeaders::mirror_request())
        .allow_private_network(true)
        .expose_headers([IGNORED_FIELDS, RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(3600))
}

/// An origin, as browsers write it, or `*` for all.
pub fn origin(text: &str) -> Result<HeaderValue, String> {
    let host = text.split_once("://").map(|(_, host)| host);
    let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains('/'));
    let wrong = || format!("{text:?} is not an origin such as https://example.org, nor *");
    match text == "*" || text == "null" || is_origin {
        true => HeaderValue::from_str(text).map_err(|_| wrong()),
        false => Err(wrong()),
    }
}

/// The same answer, which names fields without effect.
pub fn with_ignored(mut response: Response, ignored: &[String]) -> Response {
    if let (false, Ok(names)) = (ignored.is_empty(), HeaderValue::from_str(&listed(ignored))) {
        response.headers_mut().insert(IGNORED_FIELDS, names);
    }
    response
}

/// Names in a line that is no longer than clients read; dots where some are left out.
fn listed(names: &[String]) -> String {
    let mut line = String::new();
    for name in names {
        if line.len() + name.len() > MAX_HEADER {
            return line + "...";
        }
        line.push_str(name);
        line.push_str(", ");
    }
    line.truncate(line.len().saturating_sub(2));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_from_addresses() {
        for right in ["*", "null", "https://example.org", "http://localhost:3000"] {
            assert_eq!(origin(right).unwrap(), right);
        }
        for wrong in ["", "example.org", "https://example.org/", "https://", "https://a\nb"] {
            assert!(origin(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_header_has_an_end() {
        let names: Vec<String> = (0..1000).map(|number| format!("field-{number}")).collect();
        assert_eq!(listed(&names[..2]), "field-0, field-1");
        let line = listed(&names);
        assert!(line.len() < 2 * MAX_HEADER && line.ends_with(", ..."), "{line}");
        assert_eq!(listed(&["x".repeat(5000)]), "...");
    }
}
