"""The stage before reinforcement learning: demonstrations, imitated."""
