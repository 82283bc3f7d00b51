"""Whole rounds of a kit whose programs are shell scripts: what is written, whatever ends them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from unittest import mock

from gpu_round import arch, phases, program, schedule, tables

ROOT = Path(__file__).resolve().parents[2]
PASSES = 'echo "test result: ok. 3 passed; 0 failed; 0 ignored"\n'
INFO = """echo '{"cuda": {"reason": null, "devices": [{"name": "pretended"}]}}'\n"""
BENCH = """
while [ $# -gt 1 ]; do [ "$1" = --json ] && to=$2; shift; done
us='{"median": 10.0, "p10": 9.0, "p90": 11.0}'
echo '{"rows": [{"name": "a case", "us": '"$us"', "graph_us": null, "limits": [], "gb_per_s": 1, "tflop_per_s": 1}]}' >"$to"
"""
RATES = """echo '{"name": "f2fp", "warps": 1, "chains": 1, "cycles": 4.5}' >"$INFLIGHT_RATES_RECORD"\n""" + PASSES
ARCH = """echo 'kernel 32 in 1 2 out 3 4' >>"$INFLIGHT_ARCH_RECORD"\n""" + PASSES


class Rounds(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.kit, self.out = Path(self.folder.name, "kit"), Path(self.folder.name, "out")
        self.kit.mkdir()
        # What a program is started with in LD_PRELOAD: it has this one anyway.
        libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line or "libc-" in line)
        about = {"commit": "c", "archs": [], "compiler": "none", "dev": True, "emulators": {"fast": libc}}
        (self.kit / "about.json").write_text(json.dumps(about))
        (self.kit / "arch-emulator.txt").write_text("kernel 32 in 1 2 out 3 5\n")
        programs = {"inflight": INFO, "rates": RATES, "arch": ARCH, "arch_hopper": PASSES, "cuda_device": PASSES,
                    "cuda_writes": PASSES, "cuda_attention": PASSES, "gpu": BENCH, "libinflight_loader.so": ""}
        for name, text in programs.items():
            self.program(name, text)

    def program(self, name, text):
        path = self.kit / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def begin(self, *args):
        command = [sys.executable, ROOT / "scripts/gpu-round", "run", "--dry-run", "--kit", self.kit, *args]
        return subprocess.Popen([str(part) for part in command], env=os.environ | {"OUT": str(self.out)},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def round(self, *args):
        running = self.begin(*args)
        text, _ = running.communicate(timeout=60)
        return running.returncode, text

    def phases(self):
        found = json.loads((self.out / "round.json").read_text())["phases"]
        return {name: phase["state"] for name, phase in found.items()}

    def test_all_is_well(self):
        names = ["probe", "rates", "arch", "device", "writes", "attention", "bench", "benches", "sweep"]
        status, text = self.round(*names)
        self.assertEqual(status, 0, text)
        self.assertEqual(self.phases(), dict.fromkeys(names, "ok"))
        table = (self.out / "table.md").read_text()
        self.assertIn("| f2fp | 4.50 |", table)
        self.assertIn("| a case | 10.0 |", table)
        self.assertIn("words unlike the emulator's: {'kernel': 1}", table)
        self.assertIn("cuda_writes 3 passed, 0 failed", table)

    def test_a_failure_keeps_nothing_from_running(self):
        self.program("cuda_device", "echo 'test result: FAILED. 2 passed; 1 failed'; exit 101")
        status, text = self.round("probe", "device", "writes")
        self.assertEqual(status, 1, text)
        self.assertEqual(self.phases(), {"probe": "ok", "device": "failed", "writes": "ok"})
        self.assertIn("2 passed, 1 failed", (self.out / "table.md").read_text())

    def test_one_of_the_rates_takes_no_other_with_it(self):
        self.program("rates", 'case "$*" in *instructions*) exit 101;; esac\n' + RATES)
        status, text = self.round("rates")
        self.assertEqual(status, 1, text)
        steps = json.loads((self.out / "round.json").read_text())["phases"]["rates"]["steps"]
        self.assertEqual([step["name"] for step in steps if step["state"] != "ok"], ["rates-instructions"])
        self.assertIn("| f2fp | 4.50 |", (self.out / "table.md").read_text())

    def test_no_gpu_is_a_failure(self):
        self.program("cuda_writes", "echo 'skipped: no CUDA driver'\n" + PASSES)
        status, _ = self.round("writes")
        self.assertEqual((status, self.phases()), (1, {"writes": "failed"}))

    def test_the_limit_cuts_and_skips(self):
        # Its child would hold the output open, were it not ended with it.
        self.program("cuda_device", "echo 'test one ... ok'; sleep 600 & sleep 600")
        status, text = self.round("--seconds", "2.5", "probe", "device", "writes", "attention")
        self.assertEqual(status, 3, text)
        phases = self.phases()
        self.assertEqual((phases["probe"], phases["device"]), ("ok", "cut"))
        self.assertTrue({phases["writes"], phases["attention"]} <= {"ok", "skipped"}, phases)
        table = (self.out / "table.md").read_text()
        self.assertIn("cuda_device cut: longer than", table)
        self.assertIn("1 passed, 0 failed", table)

    def test_no_time_at_all(self):
        status, text = self.round("--seconds", "0.1")
        self.assertEqual(status, 3, text)
        self.assertEqual(set(self.phases().values()), {"skipped"})

    def test_a_cut_phase_whose_tests_failed_has_failed(self):
        self.program("cuda_device", "echo 'test one ... FAILED'; sleep 600")
        status, _ = self.round("--seconds", "3", "device", "writes")
        self.assertEqual((status, self.phases()["device"]), (1, "failed"))

    def test_a_signal_ends_it_with_all_written(self):
        self.program("cuda_device", f"echo $$ >{self.folder.name}/pid; sleep 600")
        running = self.begin("probe", "device", "writes")
        pid = self.pid_of_device()
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
        self.assertEqual(running.returncode, 128 + signal.SIGTERM)
        self.assertEqual(self.phases(), {"probe": "ok", "device": "cut", "writes": "skipped"})
        self.assert_gone(pid)

    def test_killed_it_leaves_what_there_was(self):
        self.program("cuda_device", f"echo $$ >{self.folder.name}/pid; sleep 600")
        running = self.begin("probe", "device", "writes")
        pid = self.pid_of_device()
        running.kill()
        running.communicate(timeout=60)
        self.assertEqual(self.phases(), {"probe": "ok", "device": "running"})
        self.assertIn("| device | running |", (self.out / "table.md").read_text())
        self.assert_gone(pid)

    def test_what_an_earlier_round_has_done_is_left_out(self):
        self.program("cuda_device", "sleep 600")
        self.round("--seconds", "3", "arch", "device")
        self.assertEqual(self.phases(), {"arch": "ok", "device": "cut"})
        self.program("cuda_device", PASSES)
        self.program("arch", "exit 1")
        status, text = self.round("--continue", self.out / "round.json", "arch", "device")
        self.assertEqual(status, 0, text)
        self.assertEqual(self.phases(), {"arch": "ok", "device": "ok"})
        self.assertIn("kernel 32", (self.out / "arch.txt").read_text())

    def test_a_cut_bench_goes_on_where_it_was(self):
        second = "; ".join([BENCH.strip().replace("a case", "another"), "sleep 600"])
        self.program("gpu", second)
        status, _ = self.round("--seconds", "3", "bench")
        self.assertEqual((status, self.phases()), (3, {"bench": "cut"}))
        # In its own folder, and in another one, as where the first machine is gone.
        first = self.out
        for out in (first, Path(self.folder.name, "other")):
            self.out = out
            self.program("gpu", f'echo "$*" >{self.folder.name}/args\n' + BENCH)
            status, text = self.round("--continue", first / "round.json", "bench")
            self.assertEqual((status, self.phases()), (0, {"bench": "ok"}), text)
            for record in (json.loads((out / "round.json").read_text())["bench"], json.loads((out / "bench.json").read_text())):
                self.assertEqual([row["name"] for row in record["rows"]], ["another", "a case"])
            self.assertIn("--except another --json", Path(self.folder.name, "args").read_text())
            if out == first:
                # Again as it was when it was killed: rows in its file that its record does not have.
                record = json.loads((out / "round.json").read_text())
                record["phases"]["bench"] |= {"state": "running", "steps": []}
                record["bench"]["rows"] = []
                (out / "round.json").write_text(json.dumps(record))
                (out / "bench.json").write_text(json.dumps({"rows": [row for row in self.rows(out) if row["name"] == "another"]}))

    def rows(self, out):
        return json.loads((out / "bench.json").read_text())["rows"]

    def test_a_round_of_its_own_takes_no_rows_of_another(self):
        self.round("bench")
        self.program("gpu", f'echo "$*" >{self.folder.name}/args\n' + BENCH.replace("a case", "another"))
        self.assertEqual(self.round("bench")[0], 0)
        self.assertEqual([row["name"] for row in self.rows(self.out)], ["another"])
        self.assertNotIn("--except", Path(self.folder.name, "args").read_text())

    def test_what_has_failed_is_tried_once_more(self):
        counted = f"echo >>{self.folder.name}/count; exit 1"
        self.program("cuda_device", counted)
        for tries in (1, 2, 2):
            earlier = ["--continue", self.out / "round.json"] if (self.out / "round.json").exists() else []
            self.assertEqual(self.round(*earlier, "device")[0], 1)
            self.assertEqual(len(Path(self.folder.name, "count").read_text()), tries)

    def test_a_step_that_was_done_is_not_done_again(self):
        self.program("rates", 'case "$*" in *copies*) exit 101;; esac\n' + RATES.replace("f2fp", "first").replace(" >", " >>"))
        self.assertEqual(self.round("rates")[0], 1)
        self.program("rates", f'echo "$*" >>{self.folder.name}/args\n' + RATES.replace(" >", " >>"))
        status, text = self.round("--continue", self.out / "round.json", "rates")
        self.assertEqual(status, 0, text)
        self.assertEqual(Path(self.folder.name, "args").read_text(), "--nocapture --exact copies\n")
        table = (self.out / "table.md").read_text()
        self.assertIn("| first | 4.50 |", table)
        self.assertIn("| f2fp | 4.50 |", table)
        earlier, self.out = self.out, Path(self.folder.name, "other")
        self.assertEqual(self.round("--continue", earlier / "round.json", "rates")[0], 0)
        self.assertEqual((self.out / "rates.jsonl").read_text(), (earlier / "rates.jsonl").read_text())

    def test_one_that_hangs_leaves_time_to_the_others(self):
        self.program("rates", 'case "$*" in *instructions*) sleep 600;; esac\n' + RATES)
        self.assertEqual(self.round("--seconds", "7", "rates")[0], 3)
        steps = json.loads((self.out / "round.json").read_text())["phases"]["rates"]["steps"]
        self.assertEqual([step["state"] for step in steps], ["cut"] + ["ok"] * 6)

    def test_no_sanitizer_is_no_success(self):
        self.out.mkdir()
        taken = phases.Round(ROOT, self.kit)
        taken.out = self.out
        with mock.patch("gpu_round.phases.find_sanitizer", lambda: None), mock.patch("gpu_round.phases.say"):
            taken.take(next(phase for phase in schedule.PHASES if phase.name == "sanitizer"), 10.0)
        phase = taken.record["phases"]["sanitizer"]
        self.assertEqual((phase["state"], phase["note"]), ("skipped", "compute-sanitizer is not here"))
        self.assertEqual(schedule.exit_status(taken.record["phases"]), 3)

    def pid_of_device(self):
        for _ in range(3000):
            try:
                return int(Path(self.folder.name, "pid").read_text())
            except (OSError, ValueError):
                time.sleep(0.01)
        raise AssertionError("the program was not started")

    def assert_gone(self, pid):
        for _ in range(3000):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                return
            if state == "Z":
                return
            time.sleep(0.01)
        raise AssertionError(f"{pid} lives on")


class Parts(unittest.TestCase):
    def test_a_prediction_stands_next_to_its_case(self):
        with tempfile.TemporaryDirectory() as folder:
            cases = {"cases": [{"name": "decode", "predicted_us": 8.0, "share": 0.9}, {"name": "unsaid"}]}
            Path(folder, "h200.json").write_text(json.dumps(cases))
            found = tables.predictions(Path(folder), "nvidia-h200")
            self.assertEqual(list(found), ["decode"])
            self.assertEqual(tables.predictions(Path(folder), "nvidia-h20"), {})
        self.assertTrue(tables.is_of("a100-80g", "nvidia-a100-sxm4-80gb"))
        self.assertFalse(tables.is_of("a100-80g", "nvidia-a100-sxm4-40gb"))
        self.assertFalse(tables.is_of("h20", "nvidia-h200"))
        self.assertEqual(tables.predictions(Path(folder, "gone"), "nvidia-h200"), {})
        us = {"median": 10.0, "p10": 9.0, "p90": 11.0}
        row = {"us": us, "graph_us": None, "limits": [], "gb_per_s": 1, "tflop_per_s": 1}
        lines = tables.bench({"rows": [row | {"name": "decode"}, row | {"name": "other"}]}, found)
        self.assertIn("| 8.0 | 1.25 |", lines[-2])
        self.assertIn("|  |  |", lines[-1])
        case = {"predicted_us": 8.0, "least_us": 7.04, "most_us": 9.0}
        self.assertEqual(tables.predicted_of(case, 10.0), ("8.0 (7.0..9.0)", "1.25"))

    def test_only_what_both_have_been_given_is_compared(self):
        found = {"k 32 in 1": ["1", "2"], "k 32 in 2": ["5"], "l 32 in 1": ["3"]}
        other = {"k 32 in 1": ["1", "3"], "l 32 in 1": ["3"]}
        self.assertEqual(arch.differences(found, other), {"k": 1})

    def test_what_is_counted_of_an_unfinished_run(self):
        text = "test a ... ok\ntest b ... noise\nok\ntest c ... "
        self.assertEqual(program.counts(text, {"state": "cut"}), {"passed": 2, "failed": 0})
        self.assertEqual(program.counts(text, {"state": "ok"}), {})


if __name__ == "__main__":
    unittest.main()
