"""Hundreds of clients at once, of which many leave: nothing lost, nothing leaked."""

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path

import aiohttp

from conftest import serving
from test_server import idle, metrics, until

CLIENTS = int(os.environ.get("LLM_LOAD_CLIENTS", "300"))
PROMPTS = ["The capital of France is", "Once upon a time", "1, 2, 3, 4,", "def add(a, b):"]


async def client(session: aiohttp.ClientSession, url: str, number: int) -> tuple[str, str]:
    """One client: what it did, and the text it got."""
    rng = random.Random(number)
    kind = rng.choice(["stays", "stays", "stays", "leaves", "killed"])
    tokens = rng.randint(1, 48)
    body = {
        "model": "smol",
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    await asyncio.sleep(rng.random() * 2)
    leave_after = rng.randint(0, 8)
    text, finish, pieces = "", None, 0
    while True:
        async with session.post(url + "/v1/completions", json=body) as response:
            if response.status == 429:
                await asyncio.sleep(0.2 + rng.random())
                continue
            assert response.status == 200, await response.text()
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line == b"data: [DONE]\n":
                    assert finish == "length"
                    return "stays", text
                choice = json.loads(line[6:])["choices"][0]
                text += choice["text"]
                finish = choice["finish_reason"] or finish
                pieces += 1
                if kind != "stays" and pieces > leave_after:
                    if kind == "killed":
                        # No goodbye: the connection is reset, where the answer has not come whole.
                        if response.connection is not None:
                            response.connection.transport.abort()
                    else:
                        response.close()
                    return kind, text
        raise AssertionError(f"the stream of client {number} ended early: {text!r}")


async def load(url: str) -> list[tuple[str, str]]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await asyncio.gather(*(client(session, url, n) for n in range(CLIENTS)))


def test_hundreds_of_clients_who_come_and_go(program: str, model: str) -> None:
    options = ["--max-num-seqs", "32", "--max-waiting", "100", "--num-blocks", "48"]
    # Swapped, not computed again: in a chunk, numbers are rounded otherwise than one by one.
    options += ["--num-host-blocks", "200"]
    options += ["--served-model-name", "smol", "--batch-invariant"]
    with serving(program, model, *options) as server:
        status = Path(f"/proc/{server.process.pid}/status")
        ended = asyncio.run(load(server.url))
        kinds = Counter(kind for kind, _ in ended)
        assert sum(kinds.values()) == CLIENTS and kinds["stays"] > CLIENTS / 3
        # Greedy texts of one prompt are each the beginning of the longest.
        for prompt in range(len(PROMPTS)):
            texts = [text for n, (_, text) in enumerate(ended) if n % len(PROMPTS) == prompt]
            longest = max(texts, key=len)
            assert all(longest.startswith(text) for text in texts)
        until(lambda: idle(server))
        now = metrics(server)
        taken = now["llm_requests_finished_total"] + now["llm_requests_cancelled_total"]
        assert taken == CLIENTS, "each request ended or was given up, once"
        assert now["llm_requests_finished_total"] >= kinds["stays"]
        assert now["llm_preemptions_total"] > 0, "the cache is too small for 32 requests"
        memory = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
        print(
            f"{CLIENTS} clients: {dict(kinds)}; {now['llm_preemptions_total']:.0f} preemptions, "
            f"{now['llm_requests_refused_total']:.0f} refusals, {memory}"
        )
