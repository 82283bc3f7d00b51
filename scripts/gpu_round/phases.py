"""What each phase of a round runs, and the record of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import arch, program, tables
from .schedule import NAMES, PHASES, Schedule, exit_status, rehearsed, state_of

# Cases of the random sweep; the least that have everything in them, where each takes long.
CASES = "300"
FEW_CASES = "28"
# What a phase's programs write themselves, case by case: lines, or rows that have names.
LINES = {"rates": "rates.jsonl", "arch": "arch.txt"}
ROWS = {name: f"{name}.json" for name in ("bench", "benches", "peers")}
# Tests of the rates, by their worth, with the image of each.
RATES = {"instructions": "rates", "load::clocks": "rates", "launches": "rates", "copies": "rates",
         "load::warpgroups": "rates_hopper", "memory::bandwidths": "rates", "memory::latencies": "rates"}


def say(text):
    print(text, flush=True)


def write_whole(path, text):
    """The old file or the new one, never a part, whatever ends the round."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def key_of(line):
    """What two lines of a file are the same figure, or launch, by."""
    try:
        row = json.loads(line)
    except ValueError:
        return line.partition(" out ")[0]
    return tuple(row.get(key) for key in ("name", "chains", "warps", "blocks"))


def latest(lines):
    """Of the same figure the last; where the first of them stood."""
    return list({key_of(line): line for line in lines}.values())


def merged(before, found):
    """Rows of an earlier run, but for those that there are again, and what this one has."""
    names = {row["name"] for row in found["rows"]}
    kept = [row for row in (before or {}).get("rows", []) if row["name"] not in names]
    whole = found | {"rows": kept + found["rows"]}
    if "notes" in found:
        whole["notes"] = list(dict.fromkeys([*(before or {}).get("notes", []), *found["notes"]]))
    return whole


def find_sanitizer():
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    homes += sorted(str(home) for home in Path("/usr/local").glob("cuda-*"))
    return shutil.which("compute-sanitizer") or next(
        (f"{home}/bin/compute-sanitizer" for home in homes if Path(home, "bin/compute-sanitizer").exists()), None)


class Skipped(Exception):
    """A phase that lacks what it needs."""


def slug_of(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Round:
    """Takes phases in turn. `emulator` is the mode of a rehearsal, none on a GPU."""

    def __init__(self, root, kit, emulator=None):
        self.root, self.kit, self.emulator = root, kit, emulator
        self.about = json.loads((kit / "about.json").read_text())
        for path in kit.iterdir():
            # Copying from machine to machine may have lost it.
            if path.is_file() and not os.access(path, os.X_OK) and not path.suffix:
                path.chmod(0o755)
        self.env = dict(os.environ)
        self.preload = {}
        if emulator:
            library = self.about["emulators"].get(emulator)
            if not library or not Path(library).exists():
                sys.exit(f"the kit has no emulator `{emulator}`: {self.about['emulators']}")
            self.env["INFLIGHT_SIMT"] = emulator
            if emulator == "ptx":  # what a round is for: code for 8.x lacks the half of it
                self.env.setdefault("INFLIGHT_SIMT_CC", "90")
            self.preload = {"LD_PRELOAD": library}
        else:
            self.env["INFLIGHT_TEST_DRIVER"] = "real"
        self.record = {"about": self.about, "emulator": emulator, "gpu": None, "seconds": None, "phases": {}}
        self.steps, self.deadline, self.is_share = [], 0.0, True
        # Of an earlier round: its record, its folder; and of the phase under way, steps that were done.
        self.earlier, self.folder, self.done = {}, None, {}
        self.out = None

    # ---- the round

    def place(self):
        self.record["nvidia_smi"] = smi = self.smi()
        name = "emulator" if self.emulator else smi.get("name", "unknown GPU")
        self.record["gpu"] = name
        here = self.kit / "dry-run" if self.emulator else self.root / "benches/record" / slug_of(name)
        self.out = Path(os.environ.get("OUT") or here)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "log.txt").unlink(missing_ok=True)

    def go(self, names, seconds, earlier=None):
        """Runs phases until they or the seconds are over. `earlier` names a round's record, of which what was
        not done is done, and what failed is tried once more. Returns the exit status."""
        start = time.monotonic()
        if earlier:
            self.earlier, self.folder = json.loads(earlier.read_text()), earlier.parent
        for name, phase in self.earlier.get("phases", {}).items():
            note = phase.get("note", "").removesuffix("(an earlier run)").strip()
            self.record["phases"][name] = phase | {"note": f"{note} (an earlier run)".strip()}
        for key in ("rates", "cuda", *ROWS):
            if key in self.earlier:
                self.record[key] = self.earlier[key]
        wanted = [phase for phase in PHASES if phase.name in names and not self.is_done(phase.name)]
        for name in self.earlier.get("phases", {}):
            if name not in [phase.name for phase in wanted]:
                self.resume(name)
        schedule = Schedule(rehearsed(wanted) if self.emulator else wanted, seconds)
        self.record["seconds"] = {"limit": seconds}
        ended = None
        while ended is None and (following := schedule.next()):
            if program.came:
                schedule.waiting.insert(0, following[0])
                ended = program.Interrupted(program.came[0])
                break
            phase, budget = following
            if budget is None:
                note = f"{schedule.left():.0f} s were left, it takes {phase.least:.0f}"
                self.skip(phase.name, note)
                say(f"{phase.name:<12} skipped: {note}")
            else:
                ended = self.take(phase, budget)
            self.record["seconds"]["used"] = round(time.monotonic() - start, 1)
            self.write()
        for phase in schedule.waiting if ended else []:
            self.skip(phase.name, str(ended))
        self.write()
        states = {name: phase["state"] for name, phase in self.record["phases"].items()}
        left = [f"{name} ({state})" for name, state in states.items() if state in ("cut", "skipped")]
        if left:
            say(f"not all was done: {', '.join(left)}")
        say(f"written: {self.out}/round.json, table.md")
        return 128 + ended.number if ended else exit_status(self.record["phases"])

    def is_done(self, name):
        phase = self.earlier.get("phases", {}).get(name, {"state": "skipped"})
        return phase["state"] == "ok" or (phase["state"] == "failed" and phase.get("retried", False))

    def skip(self, name, note):
        """What an earlier round has of it stays."""
        nothing = {"state": "skipped", "seconds": 0, "steps": []}
        self.record["phases"][name] = self.earlier.get("phases", {}).get(name, nothing) | {"note": note}

    def take(self, phase, budget):
        """One phase; what interrupted it, if anything did."""
        start = time.monotonic()
        self.deadline, self.is_share, self.steps = start + budget, budget < phase.most, []
        entry = {"state": "running", "budget": round(budget, 1), "seconds": 0, "steps": self.steps}
        before = self.earlier.get("phases", {}).get(phase.name, {})
        if before.get("state") == "failed":
            entry["retried"] = True
        self.done = {step["name"]: step for step in before.get("steps", []) if step["state"] == "ok"}
        self.record["phases"][phase.name] = entry
        self.resume(phase.name)
        # Where the round is, should it be ended now.
        self.write()
        interrupted = None
        try:
            note = getattr(self, phase.name)()
            entry["state"] = state_of(self.steps)
            if note:
                entry["note"] = note
        except program.Interrupted as why:
            interrupted = why
            entry |= {"state": "cut", "note": str(why)}
        except Skipped as why:
            entry |= {"state": "skipped", "note": str(why)}
        except Exception as error:  # a phase's failure is not the end of the others
            entry |= {"state": "failed", "note": repr(error)}
        self.collect(phase.name)
        entry["seconds"] = round(time.monotonic() - start, 1)
        parts = [f"{step['name']}: {step['status']}" for step in self.steps if step["state"] != "ok"]
        told = "; ".join([*([entry["note"]] if entry.get("note") else []), *parts])
        say(f"{phase.name:<12} {entry['state']}, {entry['seconds']} s of {budget:.0f}{': ' if told else ''}{told}")
        return interrupted

    def resume(self, name):
        """Puts a phase's file where its programs go on with it: none of another round is taken for this one's."""
        if name in LINES:
            file = LINES[name]
            text = self.text_of(self.folder / file) if self.folder else ""
            (self.out / file).unlink(missing_ok=True)
            if text:
                whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
                write_whole(self.out / file, "".join(whole))
        elif name in ROWS:
            # One that was killed has written rows that its record does not have.
            found = self.json_of(self.folder / ROWS[name]) if self.folder else None
            if found is not None:
                self.record[name] = merged(self.record.get(name), found)
            (self.out / ROWS[name]).unlink(missing_ok=True)
            if name in self.record:
                write_whole(self.out / ROWS[name], json.dumps(self.record[name], indent=1) + "\n")

    def excluded(self, name):
        """Options for cases that an earlier round has measured."""
        rows = self.record.get(name, {}).get("rows", [])
        return [option for row in rows for option in ("--except", row["name"])]

    def step(self, name, command, steps=1, **env):
        """Runs a program to its end, or that of its part of the phase's time, which `steps` of them have yet
        to share. Returns its entry and output. What an earlier round has done is not done again."""
        if name in self.done:
            self.steps.append(self.done[name])
            return self.done[name], ""
        left = (self.deadline - time.monotonic()) / steps
        if left <= 0:
            entry = {"name": name, "state": "cut", "status": "no time was left", "seconds": 0}
            self.steps.append(entry)
            return entry, ""
        entry, text = program.run(name, command, self.out / "log.txt", left, self.root, self.env | env,
                                  self.is_share or steps > 1)
        self.steps.append(entry)
        if entry["state"] == "failed":
            say("    " + "\n    ".join(text.splitlines()[-15:]))
        return entry, text

    def collect(self, name):
        """Figures that a phase's programs have written, whether they came to their end or not."""
        if name in ROWS:
            found = self.json_of(self.out / ROWS[name])
            if found is not None:
                self.record[name] = merged(self.record.get(name), found)
                write_whole(self.out / ROWS[name], json.dumps(self.record[name], indent=1) + "\n")
        lines = latest(self.text_of(self.out / LINES[name]).splitlines()) if name in LINES else []
        if lines:
            write_whole(self.out / LINES[name], "".join(line + "\n" for line in lines))
        if name != "rates" or not lines:
            return
        rates = []
        for line in lines:
            try:
                rates.append(json.loads(line))
            except ValueError:
                continue  # the line that it was ended in
        self.record["rates"] = rates

    def write(self):
        write_whole(self.out / "round.json", json.dumps(self.record, indent=1) + "\n")
        predicted = tables.predictions(self.root / "benches/record/model", slug_of(self.record["gpu"] or ""))
        write_whole(self.out / "table.md", tables.table(self.record, predicted))

    def json_of(self, path):
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return None

    def text_of(self, path):
        try:
            return path.read_text(errors="replace")
        except OSError:
            return ""

    def smi(self):
        fields = ("name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.memory,"
                  "power.limit,temperature.gpu,memory.total,clocks_event_reasons.active")
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            text = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
            return dict(zip(fields.split(","), text.splitlines()[0].split(", ")))
        except (OSError, IndexError, subprocess.SubprocessError):
            return {}

    # ---- the phases, by their names

    def probe(self):
        entry, text = self.step("info", [self.kit / "inflight", "info", "--json"], **self.preload)
        if entry["state"] == "ok" and text:
            self.record["cuda"] = cuda = json.loads(text)["cuda"]
            if not cuda["devices"]:
                entry |= {"state": "failed", "status": "no device"}
            return cuda["reason"] or ", ".join(gpu["name"] for gpu in cuda["devices"])
        return None

    def rates(self):
        # Each by itself and with a part of the time: one that hangs, or loses the context, takes none with it.
        for after, (test, image) in enumerate(RATES.items()):
            env = {"INFLIGHT_RATES_RECORD": str(self.out / LINES["rates"]),
                   "INFLIGHT_ARCH_IMAGE": str(self.kit / f"{image}.fatbin")}
            command = [self.kit / "rates", "--nocapture", "--exact", test]
            self.step(f"rates-{test.rpartition('::')[2]}", command, len(RATES) - after, **env)

    def arch(self):
        path = self.out / LINES["arch"]
        for name in arch.PROGRAMS:
            command, env = arch.recording(self.kit, name, path)
            self.step(name, command, **env)
        found, emulated = arch.read(path), arch.read(self.kit / "arch-emulator.txt")
        if not found and state_of(self.steps) == "ok":
            raise RuntimeError("nothing was recorded")
        unlike = arch.differences(found, emulated)
        return f"{len(found)} launches; words unlike the emulator's: {unlike or 'none'}"

    def device(self):
        self.step("cuda_device", [self.kit / "cuda_device", "--nocapture"])

    def writes(self):
        cases = FEW_CASES if self.emulator else CASES
        self.step("cuda_writes", [self.kit / "cuda_writes", "--nocapture"], INFLIGHT_CASES=cases)

    def attention(self):
        # The emulator takes minutes for all of them; CI has them in parts of their own.
        filters = ["schedules::"] if self.emulator else []
        self.step("cuda_attention", [self.kit / "cuda_attention", "--nocapture", *filters], INFLIGHT_CASES=FEW_CASES)

    def sweep(self):
        cases = FEW_CASES if self.emulator else CASES
        self.step("sweep", [self.kit / "cuda_attention", "--nocapture", "sweep::"], INFLIGHT_CASES=cases)

    def selftest(self):
        self.step("selftest", [self.kit / "inflight", "selftest", "--device", "cuda"], **self.preload)

    def jit(self):
        # A cache of its own: what an earlier run has compiled proves nothing.
        cache = self.out / "jit-cache"
        env = {"CUDA_FORCE_PTX_JIT": "1", "CUDA_CACHE_PATH": str(cache), "INFLIGHT_CASES": FEW_CASES}
        try:
            self.step("jit-writes", [self.kit / "cuda_writes"], **env)
            self.step("jit-attention", [self.kit / "cuda_attention", "--nocapture", "sweep"], **env)
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def sanitizer(self):
        tool = find_sanitizer()
        if not tool:
            raise Skipped("compute-sanitizer is not here")
        runs = [(check, binary, filters) for check in ("memcheck", "racecheck", "initcheck", "synccheck")
                for binary, filters in [("cuda_writes", []), ("cuda_attention", ["sweep"])]]
        for after, (check, binary, filters) in enumerate(runs):
            command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
            whole = [*command, self.kit / binary, "--test-threads=1", *filters]
            entry, text = self.step(f"{check}-{binary}", whole, len(runs) - after, INFLIGHT_CASES=FEW_CASES)
            summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
            entry["note"] = summary[-1] if summary else entry.get("note", "no summary")

    def bench(self):
        return self.measure("bench", "--telling")

    def benches(self):
        return self.measure("benches", "--rest")

    def measure(self, name, which):
        before = self.smi()
        options = ["--emulator", "--smoke"] if self.emulator else ["--bench"]
        command = [self.kit / "gpu", *options, which, *self.excluded(name), "--json", self.out / ROWS[name]]
        entry, _ = self.step(name, command)
        entry["nvidia_smi"] = [before, self.smi()]
        self.collect(name)
        return f"{len(self.record[name]['rows'])} cases" if name in self.record else None

    def peers(self):
        options = ["--smoke"] if self.emulator else []
        command = [sys.executable, self.root / "benches/peers/peers.py", "--loader", self.kit / "libinflight_loader.so"]
        options += [*self.excluded("peers"), "--json", self.out / ROWS["peers"]]
        self.step("peers", [*command, *options], **self.preload)


def unknown(names):
    return [name for name in names if name not in NAMES]
