"""Time: chains, pipes, scoreboards, barriers, copies, occupancy, plans, and where numbers are from."""

import re
import unittest

from model import chips, launch, occupancy, plan, shapes, timing
from model.timing import Memory, Op, Player, play

A100, H100 = chips.load()["a100-80g"], chips.load()["h100"]


def op(base="FADD", stall=1, pipe="", cycles=0.0, latency=0.0, write=7, wait=0, **more) -> Op:
    return Op(base, stall, wait, write, 7, pipe, cycles, latency, **more)


class Playing(unittest.TestCase):
    def test_a_dependent_chain_takes_its_latencies(self):
        chain = [op(stall=4, pipe="fma", cycles=2) for _ in range(50)]
        self.assertAlmostEqual(play(chain, A100, 1, 8).cycles, 200, delta=1)
        # Another block fits between, but no more than the pipe takes.
        self.assertAlmostEqual(play(chain, A100, 2, 8).cycles, 200, delta=4)
        self.assertAlmostEqual(play(chain, A100, 4, 8).cycles, 400, delta=8)

    def test_a_loop_that_is_bound_by_a_pipe_takes_its_cycles(self):
        products = [op("HMMA", pipe="tensor", cycles=8) for _ in range(32)]
        self.assertAlmostEqual(play(products, A100, 1, 8).cycles, 256, delta=2)
        played = play(products, A100, 2, 8)
        self.assertAlmostEqual(played.cycles, 512, delta=4)
        self.assertAlmostEqual(played.busy["tensor"], 1.0, delta=0.02)

    def test_shared_memory_is_one_for_four_schedulers(self):
        reads = [op("LDSM", pipe="mio", cycles=4) for _ in range(32)]
        self.assertAlmostEqual(play(reads, A100, 1, 8).cycles, 32 * 4 * 4, delta=20)

    def test_who_waits_for_a_scoreboard_waits_for_the_result(self):
        code = [op("LDS", pipe="mio", cycles=1, latency=30, write=0), op(wait=1)]
        # Once through: the four schedulers' loads take turns.
        total = play(code, A100, 1, 1).total
        self.assertTrue(31 <= total <= 36, total)
        self.assertLess(play([code[0], op()], A100, 1, 1).total, 5)

    def test_a_barrier_waits_for_the_slowest(self):
        bar = op("BAR", kind="bar", latency=20)
        fast, slow = [bar, op()], [op(stall=15) for _ in range(20)] + [bar, op()]
        played = Player(A100, None).play([[fast, fast, fast, slow]], 2)
        self.assertGreater(played.total, 2 * 300 + 2 * 20 - 1)

    def test_copies_are_waited_for_and_share_the_bandwidth(self):
        code = [op("LDGSTS", pipe="mio", cycles=8, kind="copy", amount=512), op("LDGDEPBAR", kind="commit"),
                op("DEPBAR", kind="wait_copies", amount=0)]
        # Four warps of 512 bytes at 8 a cycle, then the latency.
        cycles = play(code, A100, 1, 8, Memory(500, 8.0)).cycles
        self.assertTrue(4 * 512 / 8 <= cycles <= 500 + 4 * 512 / 8 + 40, cycles)
        ahead = code[:2] + [op("DEPBAR", kind="wait_copies", amount=3)]
        self.assertAlmostEqual(play(ahead, A100, 1, 60, Memory(500, 8.0)).cycles, 256, delta=10)

    def test_policies_differ_in_nothing_but_order(self):
        code = [op("HMMA", pipe="tensor", cycles=8), op(stall=6, pipe="fma", cycles=2)] * 20
        for policy in timing.POLICIES:
            # Also where one block starves the other.
            self.assertAlmostEqual(play(code, A100, 2, 8, policy=policy).cycles, 320, delta=8, msg=policy)
        with self.assertRaises(ValueError):
            play(code, A100, 2, 8, policy="oldest")


class Occupancy(unittest.TestCase):
    def test_registers_shared_memory_and_warps_each_limit(self):
        self.assertEqual(occupancy.blocks(H100, 128, 255, 82432), 2)  # 255 registers and 81 KB
        self.assertEqual(occupancy.blocks(H100, 128, 187, 100368), 2)
        self.assertEqual(occupancy.blocks(A100, 128, 183, 100368), 1)  # two would be 198 KB of 164
        self.assertEqual(occupancy.blocks(H100, 128, 168, 1024), 3)
        self.assertEqual(occupancy.blocks(H100, 128, 169, 1024), 2)  # 176, by the unit
        self.assertEqual(occupancy.blocks(H100, 1024, 32, 0), 2)
        self.assertEqual(occupancy.blocks(H100, 128, 32, 228 * 1024), 0)


class Plans(unittest.TestCase):
    def test_every_key_of_every_tile_is_computed_once(self):
        rows = [(1, 4096), (1, 77), (1, 20000), (3, 1)]
        config = plan.PlanConfig(264, 8, 4, 64, True, 32 << 10, 512)
        made = plan.make(config, rows)
        self.assertEqual(len(made.shares), 264)
        keys: dict = {}
        for part in (p for share in made.shares for p in share):
            keys.setdefault((part.row, part.head, part.q_start), []).append((part.kv_start, part.kv_end, part.merge))
        self.assertEqual(len(keys), 32)
        for (row, _, _), pieces in keys.items():
            pieces.sort()
            self.assertEqual([pieces[0][0], pieces[-1][1]], [0, rows[row][1]])
            self.assertTrue(all(a[1] == b[0] for a, b in zip(pieces, pieces[1:])))
            merge = pieces[0][2]
            self.assertEqual(made.merges[merge] if merge >= 0 else 1, len(pieces))
        costs = [sum((32 << 10) + (p.kv_end - p.kv_start) * 512 for p in share) for share in made.shares]
        even = sum(costs) / 264
        self.assertLess(max(costs), even + 2 * (32 << 10) + 1.5 * 64 * 512 + 1)

    def test_blocks_that_end_leave_their_place_to_others(self):
        self.assertEqual(launch.fluid([(10, 0), (10, 0)], {1: 60, 2: 100}), 1000)
        self.assertEqual(launch.fluid([(10, 0), (20, 0)], {1: 60, 2: 100}), 1600)

    def test_shapes_are_counted_as_the_benches_do(self):
        s = shapes.prefill(1, 2048)
        self.assertEqual(s.name, "prefill b1 s2048 64/8 d128 bs16 bf16")
        self.assertEqual(s.operations, 4.0 * 64 * 128 * 2048 * 2049 / 2)
        self.assertEqual(len({x.name for x in shapes.every()}), len(shapes.every()))
        self.assertEqual(shapes.spec("2q2k_32q1s1k").rows, ((2048, 2048),) * 2 + ((1, 1024),) * 32)


class Numbers(unittest.TestCase):
    def test_every_number_has_a_source_and_lies_in_its_range(self):
        for chip in chips.load().values():
            for key, entry in chip.entries.items():
                if isinstance(entry, list):
                    letter, how = chip.source(key)
                    self.assertIn(letter, chip.sources, f"{chip.name} {key}")
                    least, value, most = chip.range(key)
                    self.assertTrue(least <= value <= most, f"{chip.name} {key}")
                    if letter in ("X", "P"):
                        self.assertTrue(least < most, f"{chip.name} {key}: assumed, and without a range")
                    elif not how:
                        # The source says it.
                        said = {float(x.replace(",", "")) for x in re.findall(r"\d[\d,]*(?:\.\d+)?", chip.sources[letter])}
                        self.assertTrue(said & {least, value, most}, f"{chip.name} {key}: {value} is not in {letter}")

    def test_every_number_is_read(self):
        code = "".join(path.read_text() for path in chips.DATA.parent.glob("*.py"))
        for chip in chips.load().values():
            for key in (key for key, entry in chip.entries.items() if isinstance(entry, list)):
                self.assertTrue(re.search(rf"\.{key}\b|\"{key}\"", code), f"{chip.name} {key}")

    def test_kind_ends_are_faster(self):
        kind, worse = H100.extreme(True), H100.extreme(False)
        self.assertGreater(kind.ghz, worse.ghz)
        self.assertLess(kind.f2fp_pack, worse.f2fp_pack)
        self.assertGreater(kind.mufu_ahead, worse.mufu_ahead)
        self.assertEqual(kind.sms, worse.sms)


if __name__ == "__main__":
    unittest.main()
