"""Rollouts: the samplers, and the runner that turns tasks into trajectories."""
