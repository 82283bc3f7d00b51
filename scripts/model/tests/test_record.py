"""What is kept: what `check` refuses, errors beside what is published, bars, tables, and the bench's names."""

import re
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from gpu_round import tables
from model import chips, coverage, kernels, launch, record, report, shapes, toolkit, validation


class Check(unittest.TestCase):
    OLD = {"k": {"keys": 64, "instructions": 1000, "instructions_body": 1400, "instructions_turn": 300, "cycles": 2000,
                 "cycles_alone": 1500, "blocks": 2, "registers": 180}}

    def new(self, **changed):
        return {"k": {**self.OLD["k"], **changed}}

    def test_a_grown_kernel_fails(self):
        self.assertEqual(record.compare("h100", self.OLD, self.new(), {}), ([], []))
        self.assertEqual(record.compare("h100", self.OLD, self.new(instructions=1029), {}), ([], []))
        for what, value in (("instructions", 1031), ("instructions_body", 1443), ("instructions_turn", 310),
                            ("cycles", 2061), ("cycles_alone", 1546)):
            breaches, _ = record.compare("h100", self.OLD, self.new(**{what: value}), {})
            self.assertEqual(len(breaches), 1, what)
            self.assertIn(f"{what} grew", breaches[0])

    def test_fewer_blocks_fail_and_registers_do_not(self):
        self.assertEqual(len(record.compare("h100", self.OLD, self.new(blocks=1), {})[0]), 1)
        self.assertEqual(record.compare("h100", self.OLD, self.new(registers=255), {}), ([], []))

    def test_a_reason_is_taken_and_may_not_outlive_its_cause(self):
        accepted = {("k", "h100", "cycles"): "waits for a barrier that it lacked"}
        breaches, remarks = record.compare("h100", self.OLD, self.new(cycles=2100), accepted)
        self.assertEqual((breaches, len(remarks)), ([], 1))
        self.assertEqual(len(record.compare("h100", self.OLD, self.new(), accepted)[0]), 1)

    def test_a_kernel_without_a_record_fails(self):
        self.assertEqual(len(record.compare("h100", {}, self.new(), {})[0]), 1)

    def test_a_turn_of_other_keys_is_compared_by_key(self):
        # Half the keys in four fifths of the instructions is growth, whatever a turn says.
        half = self.new(keys=32, instructions=800, instructions_body=700, cycles=1000, cycles_alone=750)
        breaches, _ = record.compare("h100", self.OLD, half, {})
        self.assertEqual(len(breaches), 1)
        self.assertIn("instructions grew from 1000 to 800 (+60.0% by key, 64 and 32 a turn)", breaches[0])

    def test_what_is_absent_or_nothing_is_a_breach(self):
        without = {"k": {key: value for key, value in self.OLD["k"].items() if key != "instructions_turn"}}
        for old, new in ((self.OLD, without), (without, self.OLD), (self.OLD, {}), (self.OLD, self.new(instructions_turn=0)),
                         ({"k": {**self.OLD["k"], "instructions_turn": 0}}, self.new(instructions_turn=5000))):
            self.assertEqual(len(record.compare("h100", old, new, {})[0]), 1)

    def test_a_new_record_may_have_more_but_not_grow_or_lack_without_a_reason(self):
        def breaches(old, new):
            return len(record.compare("h100", old, new, {}, recording=True)[0])

        self.assertEqual(breaches({}, self.OLD), 0)
        self.assertEqual(breaches(self.OLD, self.new(cycles=2100)), 1)
        self.assertEqual(breaches(self.OLD, {}), 1)

    def test_reasons_that_were_taken_stay_to_be_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grown.txt"
            path.write_text("# about\nk h100 cycles why it is\n")
            self.assertEqual(record.reasons(path), {("k", "h100", "cycles"): "why it is"})
            record.settle(path)
            self.assertEqual(record.reasons(path), {})
            self.assertIn("# recorded: k h100 cycles why it is", path.read_text())


class Records(unittest.TestCase):
    def test_each_record_has_the_cases_of_the_bench(self):
        for gpu in record.GPUS:
            made = record.read(gpu)
            self.assertEqual([case["name"] for case in made["cases"]], [s.name for s in shapes.every()], gpu)
            self.assertEqual(sorted(made["kernels"]), sorted(record.WATCHED.get(gpu, ())), gpu)
            for case in made["cases"]:
                self.assertTrue(0 < case["least_us"] <= case["predicted_us"] <= case["most_us"], case["name"])
                self.assertTrue(0 < case["share"] < 1, case["name"])

    def test_the_names_are_those_of_the_bench(self):
        text = (toolkit.ROOT / "benches/gpu/shape.rs").read_text()
        names = {s.name for s in shapes.every()}
        telling = re.search(r"TELLING: \[&str; \d+\] = \[(.*?)\];", text, re.S)[1]
        attention = [name for name in re.findall(r'"(.+?)"', telling) if name.split()[0] in ("decode", "prefill", "mixed")]
        self.assertGreater(len(attention), 10)
        self.assertEqual(set(attention) - names, set())
        for what, found in (("PATTERNS", shapes.PATTERNS), ("SPECS", shapes.SPECS)):
            self.assertEqual(re.findall(r'"(.+?)"', re.search(rf"const {what}: .*? = \[(.*?)\];", text, re.S)[1]), list(found))
        decode = [s for s in shapes.every() if s.kind == "decode"]
        for what, found in (("BATCHES", {s.name.split()[1][1:] for s in decode}),
                            ("BLOCK_SIZES", {str(s.block_size) for s in decode})):
            said = re.findall(r"\d+", re.search(rf"const {what}: .*? = \[(.*?)\];", text)[1])
            self.assertEqual(set(said), found, what)

    def test_what_is_watched_was_counted(self):
        for gpu, names in record.WATCHED.items():
            for name in names:
                self.assertIn((name.partition("/")[0], chips.load()[gpu].ptx), coverage.kept())


def row(kernel="FlashAttention-2 d64", gpu="h100", predicted=110.0, published=100.0):
    return validation.Row(kernel, gpu, "1k", "TFLOP/s", published, predicted, 90.0, 120.0)


class Validation(unittest.TestCase):
    def test_errors_are_of_the_numbers_that_are_there(self):
        # Where they are not: scripts/kernel-model validate --keep, and the note and the table follow.
        self.assertEqual(validation.read_errors()["numbers"], validation.numbers())

    def test_what_was_seen_says_so(self):
        self.assertIn("held out", str(row()))
        self.assertIn("seen", str(row("FlashInfer, group 4")))
        self.assertIn("published is outside", str(row(published=130.0)))
        kept = validation.read_errors()["rows"]
        self.assertTrue(any(not x["seen"] for x in kept) and any(x["seen"] for x in kept))
        for x in kept:
            self.assertEqual(x["seen"], (x["kernel"], x["gpu"]) in validation.SEEN)

    def test_bars_are_wider_by_the_errors(self):
        errors = {"FlashAttention-2 d128": (-0.05, 0.1), "FlashInfer, group 4": (-0.2,), "FlashAttention-3 d128": (0.5,)}
        kept = {"rows": [{"kernel": kernel, "gpu": "h100", "error": error} for kernel, all in errors.items() for error in all]}
        kept["rows"].append({"kernel": "FlashInfer, group 8", "gpu": "b200", "error": 1.0})
        case = {"least_us": 100.0, "most_us": 200.0}
        # Too fast by a tenth: it takes a tenth longer.
        for gpu, family, wanted in (("h100", "prefill", (95.0, 220.0)), ("a100-80g", "decode", (80.0, 200.0)),
                                    ("h100", "mixed", (80.0, 220.0)), ("b200", "decode", (80.0, 400.0))):
            for found, bar in zip(validation.bars(case, gpu, family, kept), wanted):
                self.assertAlmostEqual(found, bar, msg=f"{gpu} {family}")

    def test_an_error_that_is_not_the_recorded_one_fails(self):
        def status(found, kept):
            rows = [{"kernel": x.kernel, "gpu": x.gpu, "case": x.case, "error": x.error} for x in kept]
            with mock.patch.dict(validation.PEERS, {"peer": lambda folder, chips: found}), \
                    mock.patch.object(validation, "read_errors", lambda: {"rows": rows}):
                return validation.run({"peer": Path()}, {}, say=lambda text: None)

        self.assertEqual(status([row()], [row()]), 0)
        self.assertEqual(status([row()], [row(predicted=112.0)]), 1)
        self.assertEqual(status([row()], []), 1)
        self.assertEqual(status(["skipped: x is not there"], []), 0)
        with self.assertRaisesRegex(ValueError, "no peer"):
            validation.run({"other": Path()}, {}, say=lambda text: None)

    def test_blocks_in_a_row_are_done_when_the_last_is(self):
        self.assertEqual(validation.grid_time([10.0, 10.0, 10.0], 2), 20.0)
        self.assertEqual(validation.grid_time([30.0, 10.0, 10.0], 2), 30.0)


class Tables(unittest.TestCase):
    def test_the_table_of_the_docs_is_that_of_the_records(self):
        text = report.DOCS.read_text()
        inside = text.partition(report.BEGIN)[2].partition(report.END)[0].strip()
        self.assertEqual(inside, report.docs_table())
        self.assertIn("L40S, not validated | B200, not validated |", inside)
        self.assertIn("+98%", inside)

    def test_a_launch_is_made_of_its_side(self):
        f = kernels.Figures(kernels.Names.of("decode_bf16_same_d128"), chips.load()["h100"], 180, 80 << 10, 4, 2, 64, 32 << 10,
                            [], {}, {1: 1000.0, 2: 1500.0}, {"mio": 0.8}, start=1000.0, end=500.0)
        with mock.patch.object(launch, "known", lambda *_: f):
            one, two = (launch.predict(shapes.decode(batch, 4096), f.chip) for batch in (64, 128))
        self.assertEqual(two.bound, "memory")
        self.assertTrue(1.8 < two.us / one.us < 2.1)
        self.assertLessEqual(two.gbs, f.chip.dram_gbs * f.chip.dram_share)


class Rates(unittest.TestCase):
    def test_measured_rates_stand_beside_what_the_model_takes(self):
        rows = [{"name": "f2fp_bf16", "chains": 8, "warps": 16, "cycles": 32.0},
                {"name": "empty launch, 132 blocks", "value": 2.0, "unit": "us"}, {"name": "other", "value": 1.0, "unit": "us"}]
        text = "\n".join(tables.rates(rows, tables.assumed("NVIDIA H200")))
        self.assertIn("| f2fp_bf16, 8 at once | 32.00 | f2fp_pack 8 (2..8) |", text)
        self.assertIn("| empty launch, 132 blocks | 2.00 | us | launch_us 2.2 (1.5..3.0) |", text)
        self.assertIn("| other | 1.00 | us |  |", text)
        self.assertEqual(tables.assumed("inflight SIMT emulator"), {})

    def test_each_number_is_one_of_every_gpu(self):
        for chip in chips.load().values():
            for keys in tables.NUMBERS.values():
                self.assertTrue(all(key in chip.entries for key in keys), chip.name)

    def test_cards_of_other_clocks_are_others(self):
        self.assertFalse(tables.is_of("h100", "nvidia-h100-pcie"))
        self.assertFalse(tables.is_of("h100", "nvidia-h100-nvl"))
        self.assertTrue(tables.is_of("h100", "nvidia-h100-80gb-hbm3"))


if __name__ == "__main__":
    unittest.main()
