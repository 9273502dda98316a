"""Updates, checkpoints, the warm start, and the loop."""
