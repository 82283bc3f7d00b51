"""How much of a round's time each phase has.

Phases run in the order of their worth. What is left of the time is divided among those still to come,
by their shares, so that what one does not need falls to the others; none gets less than it needs to
begin with, or it is skipped.
"""

import time
from dataclasses import dataclass, replace

# Of the time, what writing results and ending programs may take.
RESERVE = 0.02
MOST_RESERVE = 5.0


@dataclass(frozen=True)
class Phase:
    name: str
    # Seconds it is meant to have of a round of WHOLE: a weight.
    share: float
    # A phase that takes longer than this has failed, whatever time there is.
    most: float
    # The seconds without which it need not begin.
    least: float
    what: str
    # Its share of a rehearsal under the emulator; 0 where it means nothing there.
    emulated: float = 0


PHASES = [
    Phase("probe", 10, 60, 1, "what the machine is", 4),
    Phase("rates", 60, 60, 5, "rates of instructions, latencies of memory and launches: what the model has to be told", 3),
    Phase("arch", 15, 60, 2, "every function of csrc/arch, recorded", 3),
    Phase("device", 20, 60, 3, "tests of the device", 2),
    Phase("writes", 40, 120, 5, "tests of append, copies and merge", 3),
    Phase("attention", 120, 480, 20, "tests of attention, with few random cases", 16),
    Phase("selftest", 25, 180, 5, "inflight selftest --device cuda", 11),
    Phase("bench", 180, 480, 30, "the twenty most telling cases of the bench, next to ceilings and predictions", 6),
    Phase("peers", 140, 540, 30, "the same batches by torch and FlashInfer", 2),
    Phase("sanitizer", 80, 240, 20, "the tests under compute-sanitizer"),
    Phase("jit", 40, 300, 10, "kernels as the driver compiles them from PTX"),
    Phase("benches", 80, 540, 20, "the rest of the bench", 2),
    Phase("sweep", 30, 480, 10, "more random cases of attention", 9),
]
NAMES = [phase.name for phase in PHASES]
WHOLE = sum(phase.share for phase in PHASES)
# Seconds that any phase needs in a rehearsal.
LEAST_EMULATED = 1.0


def rehearsed(phases):
    """Those of the emulator, where all is smaller."""
    return [replace(phase, share=phase.emulated, least=LEAST_EMULATED) for phase in phases if phase.emulated]


class Schedule:
    """The phases of one round and the time they have in all."""

    def __init__(self, phases, seconds, now=time.monotonic):
        self.waiting, self.now = list(phases), now
        self.end = now() + seconds - min(MOST_RESERVE, RESERVE * seconds)

    def left(self):
        return max(self.end - self.now(), 0.0)

    def next(self):
        """The next phase and its seconds: none if too few are left. None after the last."""
        if not self.waiting:
            return None
        phase = self.waiting[0]
        shares = sum(other.share for other in self.waiting)
        self.waiting = self.waiting[1:]
        left = self.left()
        budget = max(min(phase.most, left * phase.share / shares), phase.least)
        return phase, budget if budget <= left else None


def state_of(steps):
    """Of a phase by those of what it ran: the worst of them."""
    states = [step["state"] for step in steps]
    return next((state for state in ("failed", "cut") if state in states), "ok")


def exit_status(phases):
    """0: all is well; 1: something failed; 3: nothing did, and not all was done, for want of time or of a tool."""
    states = [phase["state"] for phase in phases.values()]
    if "failed" in states:
        return 1
    return 3 if {"cut", "skipped", "running"} & set(states) else 0
