"""Pure functions from trajectories to the trainer's rows, and from rows to micro-batches."""
