"""How many blocks of a kernel fit a multiprocessor."""

from .chips import Chip

RESERVED = 1024  # bytes of shared memory that each block takes on top of its own


def blocks(chip: Chip, threads: int, registers: int, shared: int) -> int:
    """By warps, registers, and shared memory (`shared` bytes a block, dynamic and static); 0 if not even one."""
    if shared > chip.block_shared_kb * 1024:
        return 0
    warps = -(-threads // 32)
    # A warp's registers are dealt in units of 256; schedulers have a quarter of all each.
    a_warp = -(-registers * 32 // 256) * 256
    by_registers = chip.registers // 4 // a_warp * 4 // warps if a_warp else chip.blocks
    by_shared = int(chip.shared_kb * 1024) // (shared + RESERVED)
    return int(min(chip.blocks, chip.warps // warps, by_registers, by_shared))
