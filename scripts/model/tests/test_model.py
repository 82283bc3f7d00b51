"""Parts of the model against answers worked out by hand: python3 -m unittest discover -s scripts -t scripts"""

import unittest
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from model import chips, path, record, sass, sim, validate

# nvdisasm -c -hex -gi, cut down; the control bits are ptxas's.
SNIPPET = """
.text.snippet:
.L_x_0:
	//## File "a.cuh", line 75 inlined at "b.cuh", line 94
	//## File "b.cuh", line 94
        /*4730*/                   HMMA.16816.F32.BF16 R136, R32.reuse, R140, RZ ;  /* 0x0000008c2088723c */
                                                                                    /* 0x064fec00000418ff */
        /*4740*/                   LDSM.16.M88.4 R140, [R140] ;                     /* 0x000000008c8c783b */
                                                                                    /* 0x000e760000000200 */
        /*4750*/              @!P0 BRA `(.L_x_0) ;                                  /* 0x0000000000007918 */
                                                                                    /* 0x000fc60000000000 */
"""
FREE = sass.NO_SCOREBOARD


def instruction(text: str, at: int, stall: int = 1, write: int = FREE, wait: int = 0) -> sass.Instruction:
    return sass.Instruction(at * 16, text, sass.Control(stall, False, write, FREE, wait))


def line(texts: list[str], **control) -> list[sass.Instruction]:
    return [instruction(text, at, **control) for at, text in enumerate(texts)]


class Sass(unittest.TestCase):
    def test_control_bits(self):
        kernel = sass.parse(SNIPPET)["snippet"]
        hmma, ldsm, branch = kernel.instructions
        self.assertEqual(hmma.control, sass.Control(6, False, 7, 7, 0b100100))
        self.assertEqual(ldsm.control.write_scoreboard, 1)
        self.assertEqual((ldsm.control.stall, ldsm.control.wait_mask), (11, 0))
        self.assertEqual(hmma.frames, (("a.cuh", 75), ("b.cuh", 94)))
        self.assertEqual((branch.mnemonic, branch.predicated, kernel.target(branch)), ("BRA", True, 0))


class CommonPath(unittest.TestCase):
    def kernel(self, texts: list[str], labels: dict[str, int]) -> sass.Kernel:
        made = sass.Kernel("k", 32, line(texts), labels)
        for x in made.instructions:
            found = sass.TARGET.search(x.text)
            x.target = found[1] if found else ""
        return made

    def test_work_is_kept_and_what_is_rare_avoided(self):
        with TemporaryDirectory() as folder:
            source = Path(folder) / "k.cuh"
            source.write_text("work\nrescale\n")
            kernel = self.kernel(
                ["HMMA R0", "@P0 BRA `(.L_b)", "FMUL R1", "@P1 BRA `(.L_c)", "LDGSTS.E.128 [R1]", "@P2 BRA `(.L_a)"],
                {".L_a": 0, ".L_b": 3, ".L_c": 5},
            )
            for x in kernel.instructions:
                x.frames = ((str(source), 2 if x.mnemonic == "FMUL" else 1),)
            decisions = Path(folder) / "decisions.txt"
            decisions.write_text("k k.cuh rescale\n")
            found = path.common_path(kernel, path.main_loop(kernel), path.read_decisions(decisions))
            self.assertEqual([x.mnemonic for x in found], ["HMMA", "BRA", "BRA", "LDGSTS", "BRA"])
            everything = path.common_path(kernel, path.main_loop(kernel))
            self.assertIn("FMUL", [x.mnemonic for x in everything])

    def test_counts_decide(self):
        kernel = self.kernel(
            ["HMMA R0", "@P0 BRA `(.L_b)", "LDGSTS.E.128 [R1]", "@P2 BRA `(.L_a)"], {".L_a": 0, ".L_b": 3}
        )
        counts = {0: 100, 16: 100, 32: 3, 48: 100}
        found = path.common_path(kernel, path.main_loop(kernel), (), counts)
        self.assertEqual([x.mnemonic for x in found], ["HMMA", "BRA", "BRA"])


class Simulator(unittest.TestCase):
    chip = replace(chips.read()["a100-80g"], branch_latency=0)

    def test_a_dependent_chain_has_the_sum_of_its_latencies(self):
        chain = [instruction("MUFU.EX2 R1, R1", at, write=0, wait=1) for at in range(10)]
        cycles = sim.simulate(chain, self.chip, 1).cycles
        self.assertAlmostEqual(cycles, 10 * self.chip.latencies["MUFU"], delta=2)

    def test_a_pipe_binds_where_warps_are_enough(self):
        loop = line(["HMMA.16816.F32.BF16 R0, R4, R8, R0"] * 20)
        result = sim.simulate(loop, self.chip, 4, turns=12, warm=2)
        # 4 warps of a scheduler share the pipe.
        self.assertAlmostEqual(result.cycles, 4 * 20 * self.chip.intervals["hmma"], delta=20)
        self.assertEqual(result.bound_by, "tensor")

    def test_issue_binds_what_no_pipe_does(self):
        loop = line(["NOP"] * 50)
        self.assertAlmostEqual(sim.simulate(loop, self.chip, 2, turns=12).cycles, 100, delta=5)

    def test_shared_memory_is_one_for_four_schedulers(self):
        loop = line(["LDSM.16.M88.4 R0, [R0]"] * 20)
        self.assertAlmostEqual(sim.simulate(loop, self.chip, 1).cycles, 20, delta=1)
        waited = [instruction("LDSM.16.M88.4 R0, [R0]", at, write=0, wait=1) for at in range(20)]
        self.assertGreater(sim.simulate(waited, self.chip, 4).cycles, 4 * 4 * 20 * 0.95)

    def test_a_barrier_waits_for_the_slowest_warp(self):
        body = line(["FADD R0, R0, R0"] * 8) + [instruction("BAR.SYNC.DEFER_BLOCKING 0x0", 8)]
        free = sim.simulate(body[:-1], self.chip, 1).cycles
        self.assertGreater(sim.simulate(body, self.chip, 1).cycles, free + self.chip.barrier_latency / 2)

    def test_copies_wait_for_memory(self):
        body = line(["LDGSTS.E.BYPASS.128 [R1], [R2.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x0"])
        cycles = sim.simulate(body, self.chip, 1, bytes_per_cycle=10.0).cycles
        self.assertGreater(cycles, self.chip.memory_latency)


class Occupancy(unittest.TestCase):
    def test_registers_and_shared_memory(self):
        a100, h100 = chips.read()["a100-80g"], chips.read()["h100"]
        self.assertEqual(a100.blocks_per_sm(183, 128, 100368), 1)
        self.assertEqual(h100.blocks_per_sm(187, 128, 100368), 2)
        # 255 registers: 8 warps, so two blocks of four.
        self.assertEqual(h100.blocks_per_sm(255, 128, 1024), 2)
        self.assertEqual(h100.blocks_per_sm(32, 1024, 0), 2)


class Launches(unittest.TestCase):
    def test_a_block_alone_is_faster(self):
        # Two blocks together on one multiprocessor, then the longer alone.
        self.assertAlmostEqual(validate.schedule([10, 20], 1, [1 / 60, 1 / 100]), 1000 + 600)
        self.assertAlmostEqual(validate.schedule([10, 10], 2, [1 / 60, 1 / 100]), 600)


class Record(unittest.TestCase):
    def test_growth_above_the_tolerance(self):
        old = {"instructions": 1000, "cycles_per_turn": 2000}
        self.assertEqual(record.growth(old, {"instructions": 1030, "cycles_per_turn": 2000}), [])
        self.assertEqual(len(record.growth(old, {"instructions": 1031, "cycles_per_turn": 2061})), 2)

    def test_a_reason_needs_words(self):
        with TemporaryDirectory() as folder:
            file = Path(folder) / "grown.txt"
            file.write_text("# chip kernel reason\nh100 k because of masks\n")
            self.assertEqual(record.reasons(file), {("h100", "k"): "because of masks"})
            file.write_text("h100 k\n")
            with self.assertRaises(SystemExit):
                record.reasons(file)


if __name__ == "__main__":
    unittest.main()
