"""What real clients do to `llm serve`: hang up, read slowly, send nonsense, and many alphabets."""

import asyncio
import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import openai
import pytest

from conftest import Server, serving, until
from test_server import PROMPT, client, idle, metrics

__all__ = ["client"]  # A fixture.

LONG = {"model": "smol", "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True}
JAPANESE = {"prompt": "日本語のテキスト: 日本"}
# Three tokens each.
EMOJI = {"prompt": "🚀" * 8}
# The token of an emoji's first two bytes.
EMOJI_BEGINS = 10813


def connect(server: Server, receive_buffer: int | None = None) -> socket.socket:
    url = urlsplit(server.url)
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(600)
    connection.connect((url.hostname, url.port))
    return connection


def post(body: dict, path: str = "/v1/completions", more: str = "") -> bytes:
    """A request as it is on the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: llm\r\nContent-Type: application/json\r\n{more}"
    return head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


def test_async_clients_and_raw_responses(server: Server, client: openai.OpenAI) -> None:
    asked = {"model": "smol", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    raw = client.completions.with_raw_response.create(**asked)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    text = raw.parse().choices[0].text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def whole() -> str:
                return (await client.completions.create(**asked)).choices[0].text

            async def streamed() -> str:
                stream = await client.completions.create(**asked, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(whole(), streamed(), whole(), streamed())

    assert asyncio.run(all_of_them()) == [text] * 4


def test_fields_that_are_null_are_not_there(server: Server) -> None:
    fields = ["max_tokens", "logprobs", "top_logprobs", "tools", "stop", "n", "seed", "temperature"]
    fields += ["response_format", "stream", "stream_options", "logit_bias", "top_p"]
    body = {"messages": [{"role": "user", "content": "Say hello."}], **dict.fromkeys(fields)}
    body |= {"max_completion_tokens": 4, "user": "a user"}
    sent = urllib.request.Request(
        server.url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    answer = json.load(urllib.request.urlopen(sent))
    assert answer["usage"]["completion_tokens"] <= 4
    assert answer["choices"][0]["message"]["content"]


def test_logprobs_of_the_chosen_alone(client: openai.OpenAI) -> None:
    asked = {"model": "smol", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    logprobs = client.completions.create(**asked, logprobs=0).choices[0].logprobs
    assert len(logprobs.token_logprobs) == 4 and max(logprobs.token_logprobs) <= 0
    assert logprobs.top_logprobs == [{}] * 4
    with_top = client.completions.create(**asked, logprobs=2).choices[0].logprobs
    assert logprobs.token_logprobs == with_top.token_logprobs


def test_max_tokens_may_be_left_out(program: str, model: str) -> None:
    # Room for 320 tokens: less than the model's context.
    options = ["--num-blocks", "20", "--served-model-name", "smol"]
    with serving(program, model, *options) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Count to one thousand."}]
        answer = client.chat.completions.create(
            model="smol", messages=messages, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens == 320
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="smol", messages=messages, max_tokens=321)
        assert refused.value.body["code"] == "context_length_exceeded"


def both(client: openai.OpenAI, **asked) -> tuple[str, list[str]]:
    """A completion whole, and in the pieces of a stream."""
    asked = {"model": "smol", "max_tokens": 24, "temperature": 0, **asked}
    whole = client.completions.create(**asked).choices[0].text
    return whole, [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]


@pytest.mark.parametrize("asked", [JAPANESE, EMOJI], ids=["Japanese", "emoji"])
def test_characters_come_whole(client: openai.OpenAI, asked: dict) -> None:
    whole, pieces = both(client, **asked)
    assert len(whole.encode()) > 1.5 * len(whole), "characters of many bytes"
    assert "".join(pieces) == whole
    # The last may be one that was begun.
    assert not any("\ufffd" in piece for piece in pieces[:-1])


@pytest.mark.parametrize("asked", [JAPANESE, EMOJI], ids=["Japanese", "emoji"])
def test_stop_texts_of_many_bytes(client: openai.OpenAI, asked: dict) -> None:
    whole, _ = both(client, **asked)
    assert "\ufffd" not in whole[:8]
    for stop in (whole[0], whole[2:5], whole[5:7] + "never"):
        cut, pieces = both(client, **asked, stop=[stop])
        assert cut == whole.split(stop)[0] == "".join(pieces)


def test_bytes_that_are_no_text(client: openai.OpenAI) -> None:
    whole, pieces = both(client, prompt="a", logit_bias={str(EMOJI_BEGINS): 100})
    assert whole.count("\ufffd") >= 24 and "".join(pieces) == whole


def test_bytes_of_parts_of_characters_are_told(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "Repeat this: 日本語のテキスト"}],
        max_tokens=24,
        temperature=0,
        logprobs=True,
        logit_bias={str(EMOJI_BEGINS): 100},
    ).choices[0]
    told = [bytes(token.bytes) for token in choice.logprobs.content]
    assert told == ["🙂".encode()[:2]] * 24


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b'{"prompt": "a"}', "text/plain", 415),
        (b'{"prompt": "a"}', "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "a", "max_tokens": 1}', "application/json; charset=utf-8", 200),
        (b'{"prompt": "\xff"}', "application/json", 400),
        (b'{"prompt": "' + b"a" * (17 << 20) + b'"}', "application/json", 413),
        (b'{"prompt": "' + b"a" * (15 << 20) + b'"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (json.dumps({"prompt": ["a"] * 1025}).encode(), "application/json", 400),
        (json.dumps({"prompt": "a", "stop": "a" * 5000}).encode(), "application/json", 400),
        (b"", "application/json", 400),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_bodies_of_the_wrong_kind_or_size(
    server: Server, data: bytes, kind: str, status: int
) -> None:
    sent = urllib.request.Request(server.url + "/v1/completions", data, {"Content-Type": kind})
    try:
        answer = urllib.request.urlopen(sent, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    assert answer.status == status
    if status != 200:
        assert json.load(answer)["error"]["message"]


def test_requests_one_behind_the_other(server: Server) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    with connect(server) as connection:
        connection.sendall(post(asked) + post(asked) + post(asked, more="Connection: close\r\n"))
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    assert got.count(b"HTTP/1.1 200 OK") == 3 and got.count(b'"text_completion"') == 3


def test_clients_that_leave_before_their_first_token(program: str, model: str) -> None:
    options = ["--max-num-seqs", "1", "--max-num-batched-tokens", "16"]
    with serving(program, model, *options, "--served-model-name", "smol") as server:
        # In chunks of 16, this takes more than a hundred steps.
        prompt = [504, 3575, 282, 4649] * 500
        for stream in (True, False):
            before = metrics(server)
            computed = before["llm_computed_tokens_total"]
            first, second = connect(server), connect(server)
            first.sendall(post(LONG | {"prompt": prompt, "stream": stream}))
            until(lambda: metrics(server)["llm_computed_tokens_total"] > computed)
            second.sendall(post(LONG | {"stream": stream}))
            until(lambda: metrics(server)["llm_requests_waiting"] == 1)
            second.close()
            until(lambda: metrics(server)["llm_requests_waiting"] == 0)
            first.close()
            until(lambda: idle(server))
            now = metrics(server)
            assert now["llm_requests_cancelled_total"] == before["llm_requests_cancelled_total"] + 2
            assert now["llm_output_tokens_total"] == before["llm_output_tokens_total"]


def test_a_client_that_does_not_read_stops_nobody(server: Server, client: openai.OpenAI) -> None:
    with connect(server, receive_buffer=4096) as slow:
        # More than the system keeps for a connection.
        much = LONG | {"n": 15, "max_tokens": 400, "logprobs": 20, "stream": True}
        slow.sendall(post(much, more="Connection: close\r\n"))
        until(lambda: metrics(server)["llm_requests_running"] == 15)
        assert client.completions.create(model="smol", prompt=PROMPT, max_tokens=8).choices
        # The engine is done with it, while its answer waits to be read.
        until(lambda: metrics(server)["llm_requests_running"] == 0, seconds=600)
        assert metrics(server)["llm_http_requests_open"] == 1
        got = b"".join(iter(lambda: slow.recv(1 << 20), b""))
    # One chunk per token; the last one has the finish reason.
    assert got.count(b"data: ") == 15 * 400 + 1 and b"data: [DONE]" in got
    until(lambda: idle(server))


def test_a_second_signal_stops_at_once(program: str, model: str) -> None:
    # After one signal requests have ten minutes, more than `stop` waits.
    options = ["--served-model-name", "smol", "--drain-seconds", "600"]
    with serving(program, model, *options) as server:
        with connect(server) as connection:
            connection.sendall(post(LONG | {"stream": True, "max_tokens": 8000}))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(timeout=1)
            assert server.stop() == 0


def test_a_port_in_use(server: Server, program: str, model: str) -> None:
    port = str(urlsplit(server.url).port)
    ran = subprocess.run(
        [program, "serve", "--model", model, "--port", port], capture_output=True, text=True
    )
    assert ran.returncode == 1 and ran.stdout == ""
    assert f"cannot listen at 127.0.0.1:{port}" in ran.stderr
