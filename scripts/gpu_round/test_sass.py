"""Of what is looked for in the loops of rates.cu."""

import unittest

from gpu_round.sass import functions, loop, verdict

HEAD = ".text.{name}:\n        /*0000*/                   CS2R R2, SR_CLOCKLO ;\n.L_x_1:\n"
TAIL = """        /*0510*/              @!P0 BRA `(.L_x_1) ;
        /*0520*/                   CS2R R6, SR_CLOCKLO ;
        /*0530*/                   EXIT ;
"""


def listing(name, body):
    operands = {"CS2R": "R8, SR_CLOCKLO"}
    lines = [f"        /*{16 * n:04x}*/                   {opcode} {operands.get(opcode, 'R6, R5, R6')} ;\n"
             for n, opcode in enumerate(body)]
    return HEAD.format(name=name) + "".join(lines) + TAIL


class Loops(unittest.TestCase):
    def fault(self, name, body):
        return verdict(name, functions(listing(name, body))[name])[0]

    def test_a_loop_of_what_is_claimed_is_right(self):
        self.assertIsNone(self.fault("rates_shfl_1", ["SHFL.BFLY"] * 64 + ["VIADD", "ISETP.GE"]))

    def test_one_that_the_compiler_has_left_out_is_found(self):
        self.assertIn("other instructions", self.fault("rates_shfl_1", ["SHFL.BFLY"] * 63))
        self.assertIn("other instructions", self.fault("rates_shfl_1", []))

    def test_other_work_is_found(self):
        self.assertIn("more than", self.fault("rates_f2fp_bf16_1", ["F2FP.BF16.F32.PACK_AB", "PRMT"] * 64))

    def test_padding_is_for_products_alone(self):
        self.assertIsNone(self.fault("rates_hmma_f16_1", ["HMMA.16816.F32", "NOP"] * 64))
        self.assertIsNotNone(self.fault("rates_ffma_1", ["FFMA", "NOP"] * 64))

    def test_the_clock_is_around_the_loop(self):
        code = functions(listing("rates_ffma_1", ["FFMA"] * 64).replace("CS2R R6, SR_CLOCKLO", "S2R R6, SR_TID.X"))["rates_ffma_1"]
        self.assertIn("clock", verdict("rates_ffma_1", code)[0])
        self.assertIsNotNone(self.fault("rates_ffma_1", ["FFMA"] * 64 + ["CS2R"]))

    def test_a_zero_is_no_reading_of_the_clock(self):
        zero = listing("rates_ffma_1", ["FFMA"] * 64).replace("R2, SR_CLOCKLO", "R2, SRZ")
        self.assertIn("clock", verdict("rates_ffma_1", functions(zero)["rates_ffma_1"])[0])

    def test_copies_read_it_in_every_turn(self):
        turn = ["CS2R", "LDGSTS.E.BYPASS.LTC128B.128", "CS2R"]
        self.assertIsNone(self.fault("rates_ldgsts_1", turn * 4))
        self.assertIsNotNone(self.fault("rates_ldgsts_1", turn * 3 + turn[:2]))
        # As many, and nothing between them.
        self.assertIsNotNone(self.fault("rates_ldgsts_1", [turn[1], turn[0], turn[2]] * 4))

    def test_a_choice_between_readings_is_found(self):
        eight = ["CS2R", "SYNCS.ARRIVE.TRANS64", *["UMOV", "UTMALDG.4D"] * 8, "CS2R"]
        self.assertIsNone(self.fault("rates_tma_8", eight))
        self.assertIn("a choice", self.fault("rates_tma_8", [*eight[:4], "ELECT", *eight[4:]]))
        wait = ["SYNCS.PHASECHK.TRANS64.TRYWAIT", "BRA", "CS2R"]
        self.assertIsNone(self.fault("rates_tma_landed_8", eight[:-1] + wait))
        self.assertIn("a choice", self.fault("rates_tma_8", eight[:-1] + wait))

    def test_more_between_readings_than_copies_need_is_found(self):
        one = ["CS2R", "UTMALDG.4D", *["UMOV"] * 20, "CS2R"]
        self.assertIsNone(self.fault("rates_tma_1", one))
        self.assertIn("more than", self.fault("rates_tma_1", one[:2] + ["UMOV"] + one[2:]))

    def test_what_runs_beside_products_is_counted(self):
        products = ["WARPGROUP.ARRIVE", *["HGMMA.64x128x16.F32.BF16"] * 16]
        self.assertIsNone(self.fault("rates_wgmma", products))
        self.assertIsNone(self.fault("rates_wgmma_ex2", [*products, *["MUFU.EX2"] * 64]))
        self.assertIn("not 64 MUFU.EX2", self.fault("rates_wgmma_ex2", [*products, *["MUFU.EX2"] * 63]))
        self.assertIn("more than", self.fault("rates_wgmma_ex2", [*products, *["MUFU.EX2", "MOV"] * 64]))
        self.assertIn("more than", self.fault("rates_wgmma", [*products, *["MUFU.EX2"] * 64]))

    def test_the_longest_loop_with_the_instruction_is_taken(self):
        text = listing("rates_ffma_1", ["FFMA"] * 64).replace("EXIT ;", "EXIT ;\n.L_x_2:\n" + "".join(
            f"        /*{n:04x}*/                   NOP ;\n" for n in range(90)) + "        /*0a00*/  BRA `(.L_x_2) ;")
        inside, before, after = loop(functions(text)["rates_ffma_1"], "FFMA")
        self.assertEqual((len(inside), before), (65, ["CLOCK"]))
        self.assertEqual(after[:2], ["CLOCK", "EXIT"])


if __name__ == "__main__":
    unittest.main()
