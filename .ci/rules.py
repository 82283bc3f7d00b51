#!/usr/bin/env python3
"""Rules of the source tree that no compiler checks. Prints every breach; exits 1 on any."""

import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 700
# The only places where `unsafe` may stand in the library.
UNSAFE_DIRS = ("src/device/", "src/kernels/", "src/capi/")
FORBID = ("src/cache/mod.rs", "src/scheduler/mod.rs", "src/batch.rs", "src/plan.rs", "src/request.rs")
# Homes and work folders; spelt so that this file has none.
MACHINE_PATH = re.compile(r"/(?:w[o]rk|r[o]ot|h[o]me/\w+)/")
# Requests, blocks and threads are things, and two of them are next to each other.
WORDS = re.compile(r"\b(nobody|whoever|whom|everybody|somebody|vouch(?:es)?|beside)\b", re.IGNORECASE)
WORDS_IN = (
    ".ci/run", "README.md", "CHANGELOG.md", "benches/README.md", "build", "cli/src/", "csrc/", "docs/", "examples/",
    "ffi-examples/", "include/", "packaging/", "src/",
)
# What is switched off hides a defect.
STUB = re.compile(r"\b(todo!|unimplemented!|dbg!)\s*\(|#\[i[g]nore")


def main() -> int:
    files = subprocess.run(
        ["git", "ls-files"], check=True, capture_output=True, text=True
    ).stdout.split()
    breaches = []
    for name in files:
        if name == ".ci/rules.py" or name.startswith("tests/data/"):
            continue
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        lines = text.splitlines()
        if name.endswith((".rs", ".cu", ".cuh", ".go", ".py", ".cpp", ".c")) and len(lines) > MAX_LINES:
            breaches.append(f"{name}: {len(lines)} lines, more than {MAX_LINES}")
        for number, line in enumerate(lines, 1):
            at = f"{name}:{number}"
            if MACHINE_PATH.search(line):
                breaches.append(f"{at}: path of one machine")
            if name.startswith(WORDS_IN) and (word := WORDS.search(line)):
                breaches.append(f"{at}: the word `{word.group()}`")
            if name.endswith(".rs"):
                if STUB.search(line):
                    breaches.append(f"{at}: stub or switched-off test")
                code = line.split("//")[0]
                if (
                    name.startswith("src/")
                    and re.search(r"\bunsafe\b", code)
                    and not name.startswith(UNSAFE_DIRS)
                ):
                    breaches.append(f"{at}: unsafe outside {', '.join(UNSAFE_DIRS)}")
    for name in FORBID:
        if "#![forbid(unsafe_code)]" not in Path(name).read_text(encoding="utf-8"):
            breaches.append(f"{name}: lacks #![forbid(unsafe_code)]")
    for breach in breaches:
        print(breach)
    print(f"rules: {len(files)} files, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
