"""What the functions of csrc/arch give: a line per launch, `KERNEL THREADS in WORDS out WORDS`.

tests/simt/tests/common/record.rs writes them, and compares them with the emulator.
"""

# Programs of tests/simt that record, each with its image; the second needs a GPU of 9.0.
PROGRAMS = ("arch", "arch_hopper")


def recording(kit, program, path):
    """The command that records, and its environment."""
    env = {"INFLIGHT_ARCH_RECORD": str(path), "INFLIGHT_ARCH_IMAGE": str(kit / f"{program}.fatbin")}
    return [kit / program, "--test-threads=1", "--nocapture"], env


def read(path):
    """What launches gave, by their kernels and what they were given."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        head, _, out = line.partition(" out ")
        if out:
            found[head] = out.split()
    return found


def differences(found, other):
    """How many words of each kernel differ, of launches that both have."""
    unlike = {}
    for head, words in found.items():
        if head in other:
            kernel = head.split()[0]
            unlike[kernel] = unlike.get(kernel, 0) + sum(a != b for a, b in zip(words, other[head]))
    return {kernel: count for kernel, count in unlike.items() if count}
