"""A timing model of the kernels' machine code: scripts/kernel-model, docs/notes/kernel-model.md."""
