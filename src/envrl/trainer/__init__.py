"""The training loop of a run: rollouts, updates, evaluations, checkpoints."""
