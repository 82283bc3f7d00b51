"""Of gpu-round's phases and their time, with a clock that is moved by hand."""

import unittest

from gpu_round.schedule import NAMES, PHASES, WHOLE, Phase, Schedule, exit_status, rehearsed, state_of


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def three(most=1000, least=1):
    return [Phase(name, share, most, least, "") for name, share in [("a", 10), ("b", 20), ("c", 30)]]


class Shares(unittest.TestCase):
    def test_all_take_their_shares(self):
        clock, taken = Clock(), []
        schedule = Schedule(three(), 600, now=clock)
        while following := schedule.next():
            taken.append(round(following[1]))
            clock.time += following[1]
        # 5 seconds of 600 are kept.
        self.assertEqual(taken, [99, 198, 298])
        self.assertAlmostEqual(clock.time, 100 + 595)

    def test_what_one_leaves_falls_to_the_others(self):
        clock = Clock()
        schedule = Schedule(three(), 600, now=clock)
        schedule.next()
        clock.time += 5
        _, budget = schedule.next()
        self.assertAlmostEqual(budget, 590 * 20 / 50)
        clock.time += 10
        _, budget = schedule.next()
        self.assertAlmostEqual(budget, 580)
        self.assertIsNone(schedule.next())

    def test_none_has_more_than_its_limit(self):
        schedule = Schedule(three(most=7), 600, now=Clock())
        self.assertEqual([schedule.next()[1] for _ in range(3)], [7, 7, 7])

    def test_a_phase_has_what_it_needs_at_least_or_is_skipped(self):
        clock = Clock()
        schedule = Schedule(three(least=40), 100, now=clock)
        # 98 seconds; a sixth of them would not do.
        self.assertEqual(schedule.next()[1], 40)
        clock.time += 40
        self.assertEqual(schedule.next()[1], 40)
        clock.time += 40
        phase, budget = schedule.next()
        self.assertEqual((phase.name, budget), ("c", None))

    def test_a_shorter_phase_goes_where_a_longer_one_did_not_fit(self):
        phases = [Phase("long", 10, 100, 50, ""), Phase("short", 10, 100, 2, "")]
        schedule = Schedule(phases, 10, now=Clock())
        self.assertIsNone(schedule.next()[1])
        self.assertAlmostEqual(schedule.next()[1], 9.8)

    def test_after_the_end_there_is_no_time(self):
        clock = Clock()
        schedule = Schedule(three(), 10, now=clock)
        clock.time += 60
        self.assertEqual([schedule.next()[1] for _ in range(3)], [None, None, None])
        self.assertEqual(schedule.left(), 0)


class Order(unittest.TestCase):
    def test_rates_come_first_and_have_a_minute(self):
        self.assertEqual(NAMES[:4], ["probe", "rates", "arch", "device"])
        rates = PHASES[1]
        self.assertEqual((rates.share, rates.most), (60, 60))
        self.assertEqual(NAMES.index("sanitizer") - NAMES.index("peers"), 1)

    def test_all_are_known_once_and_make_a_whole(self):
        self.assertEqual(len(set(NAMES)), len(NAMES))
        self.assertEqual(WHOLE, 840)
        for phase in PHASES:
            self.assertLessEqual(phase.least, phase.share, phase.name)
            self.assertLessEqual(phase.share, phase.most, phase.name)

    def test_a_rehearsal_leaves_out_what_needs_a_gpu_and_takes_a_minute(self):
        phases = rehearsed(PHASES)
        self.assertEqual(set(NAMES) - {phase.name for phase in phases}, {"sanitizer", "jit"})
        self.assertLessEqual(sum(phase.share for phase in phases), 61)


class States(unittest.TestCase):
    def test_the_worst_step_is_the_phase(self):
        step = {"ok": {"state": "ok"}, "cut": {"state": "cut"}, "failed": {"state": "failed"}}
        self.assertEqual(state_of([]), "ok")
        self.assertEqual(state_of([step["ok"], step["cut"]]), "cut")
        self.assertEqual(state_of([step["failed"], step["cut"], step["ok"]]), "failed")

    def test_the_exit_status_tells_cut_from_failed(self):
        def status(*states):
            return exit_status({str(n): {"state": state} for n, state in enumerate(states)})

        self.assertEqual(status("ok", "ok"), 0)
        self.assertEqual(status("ok", "skipped"), 3)
        self.assertEqual(status("cut", "ok"), 3)
        self.assertEqual(status("running"), 3)
        self.assertEqual(status("cut", "failed", "ok"), 1)


if __name__ == "__main__":
    unittest.main()
