"""From trajectories to the trainer's rows, and rows to micro-batches: pure functions."""
