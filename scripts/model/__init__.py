"""A timing model of GPU kernels from their SASS: predictions, not measurements."""
