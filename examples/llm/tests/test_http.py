"""The HTTP around requests: browsers, compressed bodies, paths and methods that are not there."""

import base64
import gzip
import http.server
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from conftest import Server, serving
from test_server import PROMPT

ASKED = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
COMPLETIONS = "/v1/completions"
ORIGIN = "https://chat.example"


def request(
    server: Server, method: str, path: str, data: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        answer = urllib.request.urlopen(sent, timeout=600)
    except urllib.error.HTTPError as error:
        answer = error
    told = {name.lower(): value for name, value in answer.headers.items()}
    return answer.status, answer.read(), told


def post(server: Server, path: str, body: dict, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    headers = {"Content_Type": "application/json"} | headers
    return request(server, "POST", path, json.dumps(body).encode(), **headers)


def packed(server: Server, data: bytes, coding: str = "gzip") -> tuple[int, dict, dict[str, str]]:
    headers = {"Content_Type": "application/json", "Content_Encoding": coding}
    status, body, told = request(server, "POST", COMPLETIONS, data, **headers)
    return status, json.loads(body), told


def test_bodies_may_be_gzip(server: Server) -> None:
    plain = json.loads(post(server, COMPLETIONS, ASKED)[1])
    data = json.dumps(ASKED).encode()
    # In two members, as tools that append write it.
    for body in [gzip.compress(data), gzip.compress(data[:9]) + gzip.compress(data[9:])]:
        status, answer, _ = packed(server, body)
        assert status == 200 and answer["choices"] == plain["choices"]
    assert packed(server, data, "identity")[0] == 200
    for body in [data, gzip.compress(data)[:-9], b""]:
        status, answer, _ = packed(server, body)
        assert status == 400 and "gzip" in answer["error"]["message"]
    # A small one of 40 MB.
    bomb = gzip.compress(b'{"prompt": "' + b"a" * (40 << 20) + b'"}')
    assert len(bomb) < 100_000
    assert packed(server, bomb)[0] == 413
    for coding in ["br", "gzip, gzip", "deflate"]:
        status, answer, told = packed(server, data, coding)
        assert status == 415 and told["accept-encoding"] == "gzip"


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
def test_a_slash_may_end_a_path(server: Server, path: str) -> None:
    body = ASKED | {"prompt": None, "messages": [{"role": "user", "content": "Hi"}]}
    body = ASKED if path == COMPLETIONS else body
    assert post(server, path + "/", body)[0] == 200
    for get in ["/v1/models/", "/v1/models/smol/", "/health/", "/metrics/"]:
        assert request(server, "GET", get)[0] == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (COMPLETIONS, "POST, OPTIONS"),
        ("/v1/chat/completions", "POST, OPTIONS"),
        ("/v1/chat/completions/", "POST, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/models/smol", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
    ],
)
def test_methods_are_told(server: Server, path: str, allowed: str) -> None:
    status, body, told = request(server, "OPTIONS", path)
    assert (status, body, told["allow"]) == (204, b"", allowed)
    for method in ["PUT", "DELETE", "PATCH", "GET" if "POST" in allowed else "POST"]:
        status, body, told = request(server, method, path)
        assert status == 405 and told["allow"] == allowed
        error = json.loads(body)["error"]
        assert error["type"] == "invalid_request_error" and allowed in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "instead"),
    [
        ("POST", "/v1/responses", "/v1/chat/completions"),
        ("GET", "/v1/responses/resp_1", "/v1/chat/completions"),
        ("POST", "/v1/messages", "/v1/chat/completions"),
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/completions", "/v1/completions"),
        ("GET", "/models", "/v1/models"),
        ("POST", "/api/chat", "/v1/chat/completions"),
        ("POST", "/api/generate", "/v1/completions"),
        ("POST", "/v1/embeddings", "text completions alone"),
        ("POST", "/v1/audio/speech", "text completions alone"),
        ("GET", "/nothing", "/health"),
        ("GET", "/v1/responsesx", "/health"),
    ],
)
def test_what_is_not_there_says_what_is(
    server: Server, method: str, path: str, instead: str
) -> None:
    status, body, _ = request(server, method, path, b"{}" if method == "POST" else None)
    error = json.loads(body)["error"]
    assert status == 404 and error["code"] == "unknown_url"
    assert error["message"].startswith(f"{method} {path} is not offered here: ")
    assert instead in error["message"]


def test_browsers_are_not_answered_unless_told(server: Server) -> None:
    for told in [
        post(server, COMPLETIONS, ASKED, Origin=ORIGIN)[2],
        request(server, "OPTIONS", COMPLETIONS, Origin=ORIGIN)[2],
    ]:
        assert not any(name.startswith("access-control") for name in told)


def test_an_origin_that_is_none_is_refused(program: str, model: str) -> None:
    command = [program, "serve", "--model", model, "--cors", "example.org"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and "is not an origin" in ran.stderr


def test_headers_that_browsers_need(program: str, model: str) -> None:
    options = ["--served-model-name", "smol", "--cors", ORIGIN, "--cors", "http://localhost:3000"]
    with serving(program, model, *options) as server:
        asks = {
            "Access_Control_Request_Method": "POST",
            "Access_Control_Request_Headers": "authorization,content-type,x-stainless-lang",
            "Access_Control_Request_Private_Network": "true",
        }
        for origin in [ORIGIN, "http://localhost:3000"]:
            status, _, told = request(server, "OPTIONS", COMPLETIONS, Origin=origin, **asks)
            assert status == 200
            assert told["access-control-allow-origin"] == origin
            assert "POST" in told["access-control-allow-methods"]
            headers = told["access-control-allow-headers"]
            assert headers == asks["Access_Control_Request_Headers"]
            assert told["access-control-allow-private-network"] == "true"
            assert "origin" in told["vary"].lower()
        told = request(server, "OPTIONS", COMPLETIONS, Origin="https://other.example", **asks)[2]
        assert "access-control-allow-origin" not in told
        # Answers, streams, errors and what is not there.
        for status, path, body in [
            (200, COMPLETIONS, ASKED),
            (200, COMPLETIONS, ASKED | {"stream": True}),
            (400, COMPLETIONS, {"n": 0}),
            (404, "/v1/responses", {}),
        ]:
            got, _, told = post(server, path, body, Origin=ORIGIN)
            assert got == status and told["access-control-allow-origin"] == ORIGIN
            assert "x-ignored-fields" in told["access-control-expose-headers"]
        told = post(server, COMPLETIONS, ASKED, Origin="https://other.example")[2]
        assert "access-control-allow-origin" not in told


PAGE = """<!doctype html><pre id=got>nothing</pre><script>
const got = document.getElementById("got");
async function ask(body) {
  const answer = await fetch("URL/v1/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json", "Authorization": "Bearer none", "X-Stainless-Lang": "js"},
    body: JSON.stringify({...ASKED, ...body}),
  });
  return [answer.status, answer.headers.get("X-Ignored-Fields"), await answer.text()];
}
(async () => {
  try {
    const whole = await ask({user: "a"});
    const stream = await ask({stream: true});
    const wrong = await ask({n: 0});
    got.textContent = "GOT" + btoa(JSON.stringify([whole, stream, wrong])) + "END";
  } catch (error) { got.textContent = "FAILED" + error + "END"; }
})();
</script>"""


@pytest.mark.parametrize("allowed", [True, False])
def test_a_browser(program: str, model: str, tmp_path: Path, allowed: bool) -> None:
    names = ["chromium", "chromium-browser", "google-chrome"]
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("there is no Chromium; the headers that it needs are tested without")

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    origin = f"http://127.0.0.1:{pages.server_address[1]}"
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    cors = origin if allowed else "https://other.example"
    with serving(program, model, "--served-model-name", "smol", "--cors", cors) as server:
        page = PAGE.replace("URL", server.url).replace("ASKED", json.dumps(ASKED))
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=60000", origin + "/"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    pages.shutdown()
    text = ran.stdout.split('id="got">')[-1]
    if not allowed:
        assert text.startswith("FAILED"), ran.stdout + ran.stderr
        return
    assert text.startswith("GOT"), ran.stdout + ran.stderr
    whole, stream, wrong = json.loads(base64.b64decode(text[3:].split("END")[0]))
    assert whole[:2] == [200, "user"] and json.loads(whole[2])["choices"][0]["text"]
    assert stream[0] == 200 and stream[2].rstrip().endswith("data: [DONE]")
    assert wrong[0] == 400 and json.loads(wrong[2])["error"]["param"] == "n"
