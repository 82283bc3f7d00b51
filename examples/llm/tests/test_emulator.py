"""The way that a GPU computes, under the emulator of the library's tests.

`LLM_EMULATOR` names its library, which is loaded in front of the driver. The library's kernels run in
it; products are candle's, on the processor.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

# Of each way to multiply and type of the cache, bounds of the mean |Δlogit| from f32 throughout:
# about twice what was seen. Those of f32 and f16 are of f16's own rounding.
BOUNDS = {
    ("f32", "f16"): 0.01,
    ("f32", "bf16"): 0.06,
    ("f32", "fp8"): 0.8,
    ("f16", "f16"): 0.04,
    ("f16", "bf16"): 0.06,
    ("f16", "fp8"): 0.8,
    ("bf16", "f16"): 0.3,
    ("bf16", "bf16"): 0.3,
    ("bf16", "fp8"): 0.8,
    ("int8", "f16"): 0.4,
    ("int8", "bf16"): 0.4,
    ("int8", "fp8"): 0.8,
}


@pytest.fixture(scope="module")
def emulator() -> str:
    path = os.environ.get("LLM_EMULATOR")
    if not path:
        pytest.skip("LLM_EMULATOR names no emulator")
    return path


def emulated(
    emulator: str, command: list[str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    # Candle's tensors lie in the host's memory, which the checking and ptx emulators refuse otherwise.
    environment = {**os.environ, "LD_PRELOAD": emulator, "INFLIGHT_SIMT_PAGEABLE": "1"}
    command = [*command, "--device", "cuda"]
    return subprocess.run(command, check=check, capture_output=True, text=True, env=environment)


def lines(oracle: list[dict], path: Path, count: int) -> Path:
    given = [json.dumps({"prompt_ids": p["prompt_ids"]}) for p in oracle[:count]]
    path.write_text("\n".join(given) + "\n")
    return path


def test_what_a_gpu_does_not_do_is_refused(program: str, model: str, emulator: str) -> None:
    command = [program, "generate", "a", "--model", model]
    for options in (["--kv-dtype", "f32"], ["--batch-invariant"]):
        ran = emulated(emulator, [*command, *options], check=False)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith(f"error: {options[0]}: "), ran.stderr


def test_logits_are_close(
    program: str, model: str, emulator: str, oracle: list[dict], tmp_path: Path
) -> None:
    given = lines(oracle, tmp_path / "in.jsonl", 2)
    command = [program, "compare", str(given), "--model", model, "--max-tokens", "6"]
    ran = emulated(emulator, command)
    rows = re.findall(r"^(\w+) +(\w+) +(\S+) +\S+ +(\d+) of (\d+)$", ran.stdout, re.M)
    assert {(products, cache) for products, cache, *_ in rows} == set(BOUNDS), ran.stdout
    for products, cache, mean, agree, count in rows:
        assert 0 < float(mean) < BOUNDS[products, cache], ran.stdout
        assert int(count) == 12
        assert int(agree) >= 10, ran.stdout
    print(ran.stdout)


@pytest.mark.parametrize(
    "options",
    [
        [],
        # Preempted and swapped; chunks; sampled by the host, from a distribution of one token.
        "--num-blocks 6 --num-host-blocks 40 --max-num-batched-tokens 24".split()
        + ["--temperature", "1e-4"],
        ["--no-prefix-cache", "--block-size", "8", "--policy", "static"],
    ],
    ids=["together", "swapped in chunks, sampled", "static, padded"],
)
def test_tokens_are_those_of_the_oracle(
    program: str, model: str, emulator: str, oracle: list[dict], tmp_path: Path, options: list[str]
) -> None:
    count, length = 4, 12
    given = lines(oracle, tmp_path / "in.jsonl", count)
    out = tmp_path / "out.jsonl"
    command = [program, "batch", str(given), "--model", model, "--dtype", "f32", "--ignore-eos"]
    command += ["--max-tokens", str(length), "--json", str(out), "--max-model-len", "96", *options]
    ran = emulated(emulator, command)
    got = [json.loads(line)["output_ids"] for line in out.read_text().splitlines()]
    # The cache rounds to f16, which moves no token of these.
    assert got == [p["numpy_f32"]["output_ids"][:length] for p in oracle[:count]]
    if "--num-host-blocks" in options:
        assert int(re.search(r"(\d+) preemptions", ran.stderr)[1]) > 0, ran.stderr
