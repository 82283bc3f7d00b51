"""What the tests share: the program, the model, and a server.

`LLM_MODEL` names the model; `LLM_PROGRAM` the program, where it is not in the repository's `target/release`.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LLM = Path(__file__).resolve().parents[1]
ORACLE = LLM.parents[2] / "shared" / "oracle" / "smollm2_greedy.json"


@pytest.fixture(scope="session")
def program() -> str:
    return os.environ.get("LLM_PROGRAM", str(LLM.parents[1] / "target" / "release" / "llm"))


@pytest.fixture(scope="session")
def model() -> str:
    path = os.environ.get("LLM_MODEL")
    if not path:
        pytest.skip("LLM_MODEL names no model")
    return path


@pytest.fixture(scope="session")
def oracle() -> list[dict]:
    """Prompts and their greedy outputs by a plain f32 forward pass."""
    if not ORACLE.exists():
        pytest.skip(f"{ORACLE.name} is not here")
    return json.loads(ORACLE.read_text())["prompts"]


class Server:
    """A running `llm serve`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def stop(self, seconds: float = 120.0) -> int:
        """Asks it to stop; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)


@contextmanager
def serving(program: str, model: str, *options: str) -> Iterator[Server]:
    command = [program, "serve", "--model", model, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, f"the server said {line!r}"
        yield Server(process, found.group())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def server(program: str, model: str) -> Iterator[Server]:
    with serving(program, model, "--max-num-seqs", "16", "--served-model-name", "smol") as it:
        yield it


def until(condition, seconds: float = 120.0) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)
