#!/usr/bin/env python3
"""Checks the figures and the page of the README's first command: FILE.json FILE.html."""

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
    # Virtual time: the same on every machine, so this is a fact and not a measurement.
    ratio = continuous["output_tokens_per_s"] / static["output_tokens_per_s"]
    assert ratio > 2, f"continuous batching is {ratio:.2f} times static batching"
    with open(sys.argv[2], encoding="utf-8") as file:
        page = file.read()
    urls = set(re.findall(r"https?://[^\"'\s<]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not urls, f"the report reaches out: {urls}"
    print(f"replay: continuous is {ratio:.2f} times static, report of {len(page):,} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
