"""Runs one program of a phase, no longer than it may, and says what came of it."""

import ctypes
import os
import re
import signal
import subprocess
import time

# Programs that find no GPU end well, and have shown nothing.
NOTHING = re.compile(r"skipped: no CUDA.*|no (?:GPU|kernels) to measure.*|nothing to compare.*|no emulator: .*")
KILL_AFTER = 2.0


class Interrupted(Exception):
    """The round itself was asked to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


# Signals that have come: looked at where a program is waited for, so that none falls into a write.
came = []


def interrupt_on(*signals):
    for number in signals:
        # nohup stays in force.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: came.append(number))


def wait(process, seconds):
    """Its exit status; none where the seconds are over."""
    end = time.monotonic() + seconds
    while True:
        if came:
            raise Interrupted(came[0])
        left = end - time.monotonic()
        try:
            return process.wait(max(min(left, 0.2), 0.0))
        except subprocess.TimeoutExpired:
            if left <= 0:
                return None


def _begin():
    # Dies with the round, however that ends.
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        pass


def end(process):
    """Ends a program and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(KILL_AFTER)
        except subprocess.TimeoutExpired:
            continue
        # What it started may have outlived it.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        return


def run(name, command, log, seconds, cwd, env, is_share=True):
    """A step's entry and the text that it printed, which is appended to `log`.

    One that is longer than `seconds` is cut where that is its share of the time, else it has failed.
    """
    command = [str(part) for part in command]
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {name}: {' '.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        state, status = "ok", 0
        try:
            process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=file,
                                       stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_begin)
            try:
                status = wait(process, seconds)
                state = "failed" if status else "ok"
                if status is None:
                    state, status = ("cut" if is_share else "failed"), f"longer than {seconds:.0f} s"
            finally:
                if process.poll() is None:
                    end(process)
        except OSError as error:
            state, status = "failed", str(error)
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    entry = {"name": name, "state": state, "status": status, "seconds": round(time.monotonic() - start, 1)}
    return entry | counts(text, entry), text


def counts(text, entry):
    """What a text says of tests, and whether it says that there was nothing to test."""
    found = {}
    results = re.findall(r"test result: \w+\. (\d+) passed; (\d+) failed", text)
    if results:
        found = {"passed": sum(int(n) for n, _ in results), "failed": sum(int(n) for _, n in results)}
    elif entry["state"] == "cut":
        # The end that says so was not reached. With --nocapture what a test prints is in between.
        passed = len(re.findall(r"^(?:test .*\.\.\. )?ok$", text, re.MULTILINE))
        found = {"passed": passed, "failed": len(re.findall(r"^(?:test .*\.\.\. )?FAILED$", text, re.MULTILINE))}
        if found["failed"]:
            found["state"] = "failed"
    nothing = NOTHING.search(text)
    if nothing:
        found |= {"state": "failed", "status": nothing[0]}
    return found
