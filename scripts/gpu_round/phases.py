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
# What a phase's programs write themselves, case by case.
FILES = {"rates": "rates.jsonl", "arch": "arch.txt", "bench": "bench.json", "benches": "benches.json",
         "peers": "peers.json"}


def say(text):
    print(text, flush=True)


def write_whole(path, text):
    """The old file or the new one, never a part, whatever ends the round."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


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
        """Runs phases until they or the seconds are over. Returns the exit status."""
        start = time.monotonic()
        done = (earlier or {}).get("phases", {})
        for name, phase in done.items():
            if phase["state"] in ("ok", "failed"):
                self.record["phases"][name] = phase | {"note": f"{phase.get('note', '')} (an earlier run)".strip()}
        for key in ("rates", "bench", "benches", "peers", "cuda"):
            if key in (earlier or {}):
                self.record[key] = earlier[key]
        wanted = [phase for phase in PHASES if phase.name in names and phase.name not in self.record["phases"]]
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
                self.record["phases"][phase.name] = {"state": "skipped", "seconds": 0, "steps": [], "note": note}
                say(f"{phase.name:<12} skipped: {note}")
            else:
                ended = self.take(phase, budget)
            self.record["seconds"]["used"] = round(time.monotonic() - start, 1)
            self.write()
        for phase in schedule.waiting if ended else []:
            self.record["phases"][phase.name] = {"state": "skipped", "seconds": 0, "steps": [], "note": str(ended)}
        self.write()
        states = {name: phase["state"] for name, phase in self.record["phases"].items()}
        left = [f"{name} ({state})" for name, state in states.items() if state in ("cut", "skipped")]
        if left:
            say(f"not all was done: {', '.join(left)}")
        say(f"written: {self.out}/round.json, table.md")
        return 128 + ended.number if ended else exit_status(self.record["phases"])

    def take(self, phase, budget):
        """One phase; what interrupted it, if anything did."""
        start = time.monotonic()
        self.deadline, self.is_share, self.steps = start + budget, budget < phase.most, []
        entry = {"state": "running", "budget": round(budget, 1), "seconds": 0, "steps": self.steps}
        self.record["phases"][phase.name] = entry
        if phase.name in FILES:
            # None of an earlier round is taken for this one's.
            (self.out / FILES[phase.name]).unlink(missing_ok=True)
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
        except Exception as error:  # a phase's failure is not the end of the others
            entry |= {"state": "failed", "note": repr(error)}
        self.collect()
        entry["seconds"] = round(time.monotonic() - start, 1)
        parts = [f"{step['name']}: {step['status']}" for step in self.steps if step["state"] != "ok"]
        told = "; ".join([*([entry["note"]] if entry.get("note") else []), *parts])
        say(f"{phase.name:<12} {entry['state']}, {entry['seconds']} s of {budget:.0f}{': ' if told else ''}{told}")
        return interrupted

    def step(self, name, command, **env):
        """Runs a program to its end, or that of the phase. Returns its entry and output."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            entry = {"name": name, "state": "cut", "status": "no time was left", "seconds": 0}
            self.steps.append(entry)
            return entry, ""
        entry, text = program.run(name, command, self.out / "log.txt", left, self.root, self.env | env, self.is_share)
        self.steps.append(entry)
        if entry["state"] == "failed":
            say("    " + "\n    ".join(text.splitlines()[-15:]))
        return entry, text

    def collect(self):
        """Figures that programs have written, whether they came to their end or not."""
        for key in ("bench", "benches", "peers"):
            # (Those of an earlier round stay, where this one has not come to it.)
            found = self.json_of(f"{key}.json")
            if found is not None:
                self.record[key] = found
        try:
            lines = (self.out / "rates.jsonl").read_text().splitlines()
        except OSError:
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

    def json_of(self, name):
        try:
            return json.loads((self.out / name).read_text())
        except (OSError, ValueError):
            return None

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
        if entry["state"] == "ok":
            self.record["cuda"] = cuda = json.loads(text)["cuda"]
            if not cuda["devices"]:
                entry |= {"state": "failed", "status": "no device"}
            return cuda["reason"] or ", ".join(gpu["name"] for gpu in cuda["devices"])
        return None

    def rates(self):
        env = {"INFLIGHT_RATES_RECORD": str(self.out / "rates.jsonl"),
               "INFLIGHT_ARCH_IMAGE": str(self.kit / "rates.fatbin")}
        # Each by itself, in the order of their worth: one that hangs, or loses the context, takes none with it.
        for test in ("instructions", "launches", "memory", "copies"):
            self.step(f"rates-{test}", [self.kit / "rates", "--nocapture", "--exact", test], **env)

    def arch(self):
        path = self.out / "arch.txt"
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
        homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
        homes += sorted(str(home) for home in Path("/usr/local").glob("cuda-*"))
        tool = shutil.which("compute-sanitizer") or next(
            (f"{home}/bin/compute-sanitizer" for home in homes if Path(home, "bin/compute-sanitizer").exists()), None)
        if not tool:
            return "compute-sanitizer is not here"
        for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
            command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
            for binary, filters in [("cuda_writes", []), ("cuda_attention", ["sweep"])]:
                whole = [*command, self.kit / binary, "--test-threads=1", *filters]
                entry, text = self.step(f"{check}-{binary}", whole, INFLIGHT_CASES=FEW_CASES)
                summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
                entry["note"] = summary[-1] if summary else "no summary"
        return None

    def bench(self):
        return self.measure("bench", "--telling")

    def benches(self):
        return self.measure("benches", "--rest")

    def measure(self, name, which):
        before = self.smi()
        options = ["--emulator", "--smoke"] if self.emulator else ["--bench"]
        entry, _ = self.step(name, [self.kit / "gpu", *options, which, "--json", self.out / f"{name}.json"])
        entry["nvidia_smi"] = [before, self.smi()]
        found = self.json_of(f"{name}.json")
        return f"{len(found['rows'])} cases" if found else None

    def peers(self):
        options = ["--smoke"] if self.emulator else []
        command = [sys.executable, self.root / "benches/peers/peers.py", "--loader", self.kit / "libinflight_loader.so"]
        self.step("peers", [*command, *options, "--json", self.out / "peers.json"], **self.preload)


def unknown(names):
    return [name for name in names if name not in NAMES]
