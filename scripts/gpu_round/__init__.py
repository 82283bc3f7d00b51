"""What scripts/gpu-round is made of: a kit of programs, the phases that run them, and their tables."""
