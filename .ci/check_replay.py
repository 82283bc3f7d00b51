#!/usr/bin/env python3
"""Checks the figures and the page of a replay of the built-in workload: FILE.json FILE.html."""

import json
import re
import sys


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        document = json.load(file)
    static, continuous = document["runs"]
    assert [static["policy"], continuous["policy"]] == ["static", "continuous"]
    for run in document["runs"]:
        assert run["requests"] == document["config"]["trace_requests"], "requests were lost"
        assert run["useful_tokens"] <= run["computed_tokens"]
    assert static["output_tokens"] == continuous["output_tokens"]
    assert static["padding_waste"] > 0 == continuous["padding_waste"]
    ratio = continuous["output_tokens_per_s"] / static["output_tokens_per_s"]
    computed = document["device"].startswith("cpu ")
    if computed:
        # What is computed follows from decisions; how fast is this machine's affair, and however
        # noisy it is, several times the work takes more time.
        for run in document["runs"]:
            assert run["measured"]["attention_flops"] > 0 < run["measured"]["kv_bytes_read"]
        work = [run["measured"]["attention_flops"] for run in document["runs"]]
        assert work[0] > 2 * work[1], f"static batching computes {work[0] / work[1]:.2f} times"
        assert ratio > 1, f"continuous batching is {ratio:.2f} times static batching"
    else:
        # Virtual time: the same on every machine, so this is a fact and not a measurement.
        assert ratio > 2, f"continuous batching is {ratio:.2f} times static batching"
    with open(sys.argv[2], encoding="utf-8") as file:
        page = file.read()
    urls = set(re.findall(r"https?://[^\"'\s<]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not urls, f"the report reaches out: {urls}"
    how = "measured" if computed else "in virtual time"
    print(
        f"replay on {document['device']}: continuous is {ratio:.2f} times static, {how}; "
        f"report of {len(page):,} characters"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
