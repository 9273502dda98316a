"""Replays that ship, a file each; `envrl.replay` has what a replay is."""
