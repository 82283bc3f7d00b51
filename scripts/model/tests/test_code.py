"""Machine code: control bits, lines, ways, and the executor's counts. python3 -m unittest discover -s scripts -t scripts"""

import tempfile
import unittest
from pathlib import Path

from model import coverage, flow, kernels, sass

# As nvdisasm -c -hex -gi prints it: three instructions of the decode kernel for sm_90.
SNIPPET = """\
\t.section\t.text.k,"ax",@progbits
.text.k:
\t//## File "x/csrc/common/step.cuh", line 11 inlined at "x/csrc/attention/decode/decode.cuh", line 251
\t//## File "x/csrc/attention/decode/decode.cuh", line 251
        /*0070*/                   LDG.E R24, desc[UR8][R24.64+0x60] ;     /* 0x0000600818187981 */
                                                                           /* 0x000ea2000c1e1900 */
\t//## File "x/csrc/attention/decode/decode.cuh", line 242
.L_x_1:
        /*0080*/              @!P0 IADD3 R190, P0, R24, UR4, RZ ;          /* 0x0000000418be7c10 */
                                                                           /* 0x004fca000ff1e0ff */
        /*0090*/                   BRA `(.L_x_1) ;                         /* 0xffffc8d000007947 */
                                                                           /* 0x000fec000383ffff */
"""


def code(text: str) -> sass.Function:
    """From lines `[LABEL:] [@P] OPCODE operands [; file:line]`, one cycle each."""
    f = sass.Function("k")
    for line in text.strip().splitlines():
        line, _, place = (part.strip() for part in line.partition(";"))
        label, colon, rest = line.partition(":")
        if colon:
            f.labels[label] = len(f.instructions)
            line = rest.strip()
        words = line.split(maxsplit=1)
        predicate = ""
        if words[0].startswith("@"):
            predicate, line = words
            words = line.split(maxsplit=1)
        lines = ((place.partition(":")[0], int(place.partition(":")[2])),) if place else ()
        operands = words[1] if len(words) > 1 else ""
        control = sass.Control(1, False, 7, 7, 0)
        f.instructions.append(sass.Instruction(16 * len(f.instructions), predicate, words[0], operands, control, lines))
    return f


# A loop with a way around the products, a slow way to rescale, and a rare look-up.
LOOP = """
    MOV R1
    .L_head: ISETP P0
    @P0 BRA `(.L_skip)
    HMMA R2 ; decode.cuh:1
    HMMA R3
    .L_skip: FADD R4
    @P1 BRA `(.L_plain)
    FMUL R5 ; softmax.cuh:7
    FMUL R6 ; softmax.cuh:7
    .L_plain: LDGSTS R7
    @P2 BRA `(.L_next)
    LDG R8 ; step.cuh:9
    .L_next: @P3 BRA `(.L_head)
    EXIT
"""


class Sass(unittest.TestCase):
    def test_control_bits_are_those_of_the_snippet(self):
        load, add, jump = sass.parse(SNIPPET)["k"].instructions
        # 0x000ea2000c1e1900 >> 41 is 0x00751: 0111 (read none is 7), write 2, no yield.
        self.assertEqual(load.control, sass.Control(stall=1, yields=False, write=2, read=7, wait=0))
        self.assertEqual(add.control, sass.Control(stall=5, yields=True, write=7, read=7, wait=4))
        self.assertEqual((jump.control.stall, jump.control.wait), (6, 0))
        self.assertEqual((add.predicate, add.opcode, jump.target), ("@!P0", "IADD3", ".L_x_1"))

    def test_lines_go_from_what_is_inlined_outwards(self):
        function = sass.parse(SNIPPET)["k"]
        self.assertEqual(function.instructions[0].lines, (("step.cuh", 11), ("decode.cuh", 251)))
        self.assertEqual(function.instructions[1].lines, (("decode.cuh", 242),))
        self.assertEqual(function.labels, {".L_x_1": 1})


class Ways(unittest.TestCase):
    def opcodes(self, **rules):
        f = flow.Flow(code(LOOP))
        head, = f.main_loops()
        return [x.base for x in f.trace(f.loop_way(head, **rules))]

    def test_most_work_and_then_the_shortest(self):
        self.assertEqual(self.opcodes(), ["ISETP", "BRA", "HMMA", "HMMA", "FADD", "BRA", "LDGSTS", "BRA", "BRA"])

    def test_lines_that_are_asked_for_are_on_the_way(self):
        self.assertIn("FMUL", self.opcodes(asked=[("softmax.cuh", 7)]))
        self.assertIn("LDG", self.opcodes(asked=[("step.cuh", 9)]))

    def test_lines_that_are_shunned_are_not(self):
        self.assertNotIn("HMMA", self.opcodes(shunned=[("decode.cuh", 1)]))
        self.assertIn("FMUL", self.opcodes(shunned=[("step.cuh", 8)], asked=[("softmax.cuh", 7)]))

    def test_of_two_loops_with_products_the_inner_one_counts(self):
        f = flow.Flow(code("""
            .L_parts: MOV R0
            .L_keys: HMMA R1
            @P0 BRA `(.L_keys)
            HMMA R2
            HMMA R3
            @P1 BRA `(.L_parts)
            EXIT"""))
        self.assertEqual([f.code(h)[0].base for h in f.main_loops()], ["HMMA"])
        self.assertEqual(f.count(f.loops[f.main_loops()[0]], ("HMMA",)), 1)

    def test_the_texts_of_paths_are_in_the_sources(self):
        # It fails where one is in no line.
        self.assertIn(("decode", "loop", "ask"), kernels.rules())


# The loop above as PTX: what its lines are from, and where that is inlined.
PTX = """\
.file 1 "x/csrc/decode.cuh"
.file 2 "x/csrc/softmax.cuh"
.file 3 "x/csrc/cuda.cuh"
.loc 1 1 5
mma.sync;
.loc 2 7 3, function_name $L1, inlined_at 1 9 1
mul.f32;
.loc 3 3 1, function_name $L2, inlined_at 1 4 1
cp.async;
"""


class Counts(unittest.TestCase):
    def setUp(self):
        # LDGSTS of a line that is inlined elsewhere, too; the rescaling of a line without work.
        text = LOOP.replace("LDGSTS R7", "LDGSTS R7 ; cuda.cuh:3").replace("HMMA R3", "HMMA R3 ; decode.cuh:1")
        function = code(text)
        outer = {"softmax.cuh": ("decode.cuh", 9), "cuda.cuh": ("decode.cuh", 4)}
        for x in function.instructions:
            x.lines += tuple(outer[file] for file, _ in x.lines if file in outer)
        self.flow = flow.Flow(function)
        self.head, = self.flow.main_loops()

    def counted(self, **executions):
        """By the PTX's lines, of several processes."""
        lines = {"mma": 5, "mul": 7, "copy": 9}
        with tempfile.TemporaryDirectory() as folder:
            for n in range(2):
                rows = [f"inflight_k\tk.90.ptx\t{lines[what]}\tx:1\top\t{count}\t0" for what, count in executions.items()]
                (Path(folder) / f"{n}.tsv").write_text("\n".join(rows))
            (Path(folder) / "k.90.ptx").write_text(PTX)
            return coverage.read(Path(folder), "k", "90", Path(folder))

    def way(self, counts, at_will=(), **rules):
        shares = coverage.shares_of(self.flow, self.head, counts)
        blocks = coverage.of_blocks(self.flow, self.head, shares)
        usual, rare = coverage.decisions(self.flow, blocks, at_will)
        return [x.base for x in self.flow.trace(self.flow.loop_way(self.head, usual=usual, rare=rare, **rules))]

    def test_lines_of_ptx_have_a_chain(self):
        self.assertEqual(coverage.chains(PTX)[7], (("softmax.cuh", 7), ("decode.cuh", 9)))
        self.assertEqual(coverage.chains(PTX)[5], (("decode.cuh", 1),))

    def test_counts_of_processes_are_added_and_told_by_turns(self):
        counts = self.counted(mma=100, mul=3, copy=80)
        self.assertEqual(counts[(("softmax.cuh", 7), ("decode.cuh", 9))], 6)
        shares = coverage.shares_of(self.flow, self.head, counts)
        self.assertEqual(sorted(shares.values()), [0.03, 0.8, 1.0])

    def test_what_runs_in_every_turn_is_on_the_way_though_it_is_longer(self):
        self.assertIn("FMUL", self.way(self.counted(mma=100, mul=100, copy=100)))
        self.assertNotIn("FMUL", self.way(self.counted(mma=100, mul=3, copy=100)))

    def test_what_was_not_counted_is_taken_to_run(self):
        # The look-up, the skipped products' rest: nothing is known of them, so a block put in there is seen.
        self.assertIn("LDG", self.way(self.counted(mma=100, mul=3, copy=100)))

    def test_what_depends_on_lengths_is_left_to_the_rule(self):
        counts = self.counted(mma=100, mul=100, copy=100)
        self.assertNotIn("FMUL", self.way(counts, at_will={("softmax.cuh", 7)}))

    def test_short_rows_say_nothing_of_what_is_seldom_run(self):
        asked = [("softmax.cuh", 7)]
        long, short = self.counted(mma=100, mul=3, copy=90), self.counted(mma=100, mul=3, copy=10)
        blocks = [coverage.of_blocks(self.flow, self.head, coverage.shares_of(self.flow, self.head, x)) for x in (long, short)]
        self.assertTrue(coverage.decisions(self.flow, blocks[0])[1])
        self.assertEqual(coverage.decisions(self.flow, blocks[1])[1], set())
        self.assertIn("FMUL", self.way(long, asked=asked))

    def test_what_is_kept_is_read_again(self):
        kept = {("k", "90"): {"abc1234": 1.0, "def5678": 0.25}, ("l", "80"): {"abc1234": 0.5}}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "counts.txt"
            coverage.write(kept, path)
            self.assertEqual(coverage.kept(path), kept)
            (Path(folder) / "bad.txt").write_text("k 90\n")
            with self.assertRaisesRegex(ValueError, "bad.txt:1"):
                coverage.kept(Path(folder) / "bad.txt")

    def test_keys_are_of_texts_and_not_of_numbers(self):
        text = (kernels.CSRC / "attention/decode/decode.cuh").read_text().splitlines()
        first, other = [n for n, line in enumerate(text, 1) if line.strip() == "}"][:2]
        self.assertEqual(coverage.key((("decode.cuh", first),)), coverage.key((("decode.cuh", other),)))
        self.assertNotEqual(coverage.key((("decode.cuh", 1),)), coverage.key((("softmax.cuh", 1),)))

    def test_a_row_that_is_not_one_is_refused_by_file_and_line(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "1.tsv").write_text("k\tx\n")
            with self.assertRaisesRegex(ValueError, "1.tsv:1"):
                coverage.read(Path(folder), "k", "90", Path(folder))

    def test_both_sides_of_mixed_have_rules(self):
        # A side asks its own family's, under names that paths.txt has.
        for family in ("decode", "prefill"):
            for way in ("masked", "rescale"):
                self.assertIn((family, way, "ask"), kernels.rules())


if __name__ == "__main__":
    unittest.main()
