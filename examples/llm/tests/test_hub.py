"""Models by name, from a server on this machine that answers as the hub does."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A repository `smol/model` with the files `files`, at revisions `main` and `v1`."""

    files: dict[str, Path]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if re.fullmatch(r"/api/models/smol/model/revision/(main|v1)", self.path):
            names = ",".join(f'{{"rfilename":"{name}"}}' for name in ["README.md", *self.files])
            body = f'{{"sha":"{COMMIT}","siblings":[{names}]}}'.encode()
            return self.answer(200, body, {})
        found = re.fullmatch(r"/smol/model/resolve/(main|v1)/(.+)", self.path)
        path = self.files.get(found[2]) if found else None
        if path is None:
            return self.answer(404, b"Entry not found", {})
        data = path.read_bytes()
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
        first, last = int(start), int(end or len(data) - 1)
        headers = {
            "ETag": f'"{len(data)}"',
            "X-Repo-Commit": COMMIT,
            "Content-Range": f"bytes {first}-{last}/{len(data)}",
        }
        return self.answer(206, data[first : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(model: str) -> Iterator[tuple[type[Hub], str]]:
    handler = type("Handler", (Hub,), {"files": {"smol.gguf": Path(model)}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def generate(program: str, name: str, home: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [program, "generate", "--raw", "1, 2, 3,", "--max-tokens", "6", "--model", name]
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_model_is_downloaded_once(
    program: str, hub: tuple[type[Hub], str], tmp_path: Path
) -> None:
    handler, url = hub
    first = generate(program, "hf:smol/model@v1/smol.gguf", tmp_path, url)
    assert first.returncode == 0, first.stderr
    assert "4, 5" in first.stdout
    asked = list(handler.asked)
    assert asked and all(path == "/smol/model/resolve/v1/smol.gguf" for path in asked)
    again = generate(program, "hf:smol/model@v1/smol.gguf", tmp_path, url)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert handler.asked == asked, "what is here is not asked for"


def test_the_only_file_needs_no_name(
    program: str, hub: tuple[type[Hub], str], tmp_path: Path
) -> None:
    handler, url = hub
    ran = generate(program, "hf:smol/model", tmp_path, url)
    assert ran.returncode == 0, ran.stderr
    handler.files = {"a.gguf": handler.files["smol.gguf"], "b.gguf": handler.files["smol.gguf"]}
    ran = generate(program, "hf:smol/model", tmp_path, url)
    assert ran.returncode == 1
    assert "name one of its files: a.gguf, b.gguf" in ran.stderr


def test_what_is_not_there_is_an_error(
    program: str, hub: tuple[type[Hub], str], tmp_path: Path
) -> None:
    _, url = hub
    for name in ["hf:smol/model/other.gguf", "hf:smol/other"]:
        ran = generate(program, name, tmp_path, url)
        assert ran.returncode == 1
        assert ran.stderr.startswith(f"error: asking the hub for {name}: "), ran.stderr
        assert "404" in ran.stderr
    ran = generate(program, "hf:smol", tmp_path, url)
    assert ran.returncode == 1
    assert "hf:OWNER/REPO[@REVISION][/FILE.gguf]" in ran.stderr
    # A port without a listener.
    ran = generate(program, "hf:smol/model/smol.gguf", tmp_path, "http://127.0.0.1:9")
    assert ran.returncode == 1
    assert "asking the hub for hf:smol/model/smol.gguf" in ran.stderr
