"""Greedy outputs of `llm batch`, token for token, against those of a plain f32 forward pass."""

import json
import re
import subprocess
from pathlib import Path

import pytest

# How a batch is run, and what has to have happened in it.
RUNS = {
    "one at a time": (["--max-num-seqs", "1", "--no-prefix-cache"], 1, {"preemptions": 0}),
    "all at once": (["--max-num-seqs", "32"], 1, {"preemptions": 0}),
    "in chunks of 16": (["--max-num-batched-tokens", "16"], 1, {"preemptions": 0}),
    # 45 requests of up to 9 blocks each, of which 32 may run.
    "preempted": (["--max-num-seqs", "32", "--num-blocks", "40", "--no-prefix-cache"], 3, {}),
    "swapped": (
        ["--max-num-seqs", "32", "--num-blocks", "40", "--num-host-blocks", "200"],
        3,
        {},
    ),
    "prefixes shared": (["--max-num-seqs", "32", "--max-num-batched-tokens", "64"], 3, {}),
    "batch invariant": (["--max-num-seqs", "32", "--batch-invariant"], 1, {}),
    "blocks of 1, one thread": (
        ["--block-size", "1", "--num-blocks", "4000", "--threads", "1"],
        1,
        {},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_those_of_the_oracle(
    program: str, model: str, oracle: list[dict], tmp_path: Path, name: str
) -> None:
    options, times, wanted = RUNS[name]
    given = tmp_path / "in.jsonl"
    lines = oracle * times
    given.write_text(
        "".join(
            # Half by text, half by tokens: the tokenizer is under test as well.
            json.dumps({"prompt": p["prompt"]} if i % 2 else {"prompt_ids": p["prompt_ids"]}) + "\n"
            for i, p in enumerate(lines)
        )
    )
    out = tmp_path / "out.jsonl"
    command = [program, "batch", str(given), "--model", model, "--greedy", "--dtype", "f32"]
    command += ["--max-tokens", "32", "--ignore-eos", "--json", str(out), *options]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    got = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(got) == len(lines)
    for want, line in zip(lines, got, strict=True):
        assert line["prompt_ids"] == want["prompt_ids"], want["prompt"]
        assert line["output_ids"] == want["numpy_f32"]["output_ids"], want["prompt"]
        assert line["finish_reason"] == "length"
    said = {key: int(n) for n, key in re.findall(r"(\d+) (preemptions|found)", ran.stderr)}
    for key, count in wanted.items():
        assert said[key] == count
    if name in ("preempted", "swapped"):
        assert said["preemptions"] > 0, ran.stderr
    if name == "prefixes shared":
        assert said["found"] > 0, ran.stderr
    print(f"{name}: {len(got)} outputs of 32 tokens equal; {said}")
