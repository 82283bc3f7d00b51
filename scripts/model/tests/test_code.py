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


class Counts(unittest.TestCase):
    def test_counts_take_the_place_of_the_rule(self):
        rows = [("mma.sync.aligned.m16n8k16", "decode.cuh:1", 100), ("mul.f32", "softmax.cuh:7", 3),
                ("ld.global.nc.u32", "step.cuh:9", 90), ("cp.async.cg.shared.global", "cuda.cuh:3", 100)]
        text = "\n".join(f"k\tk.90.ptx\t{n}\tcsrc/{place}\t{op}\t{count}\t0" for n, (op, place, count) in enumerate(rows))
        function = code(LOOP.replace("LDGSTS R7", "LDGSTS R7 ; cuda.cuh:3"))
        f = flow.Flow(function)
        head, = f.main_loops()

        def way(text: str):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "1.tsv").write_text(text)
                counts = coverage.read(Path(folder))["k"]
            usual, rare = coverage.decisions(f, head, coverage.of_blocks(f, counts))
            return [x.base for x in f.trace(f.loop_way(head, usual=usual, rare=rare))]

        self.assertIn("LDG", way(text))
        self.assertNotIn("LDG", way(text.replace("\t90\t", "\t9\t")))

    def test_a_row_that_is_not_one_is_refused_by_file_and_line(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "1.tsv").write_text("k\tx\n")
            with self.assertRaisesRegex(ValueError, "1.tsv:1"):
                coverage.read(Path(folder))


if __name__ == "__main__":
    unittest.main()
