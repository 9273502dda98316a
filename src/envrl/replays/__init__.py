"""Replays that ship, a file each; `envrl.replay` has what a replay is.

`other_run` reads what the replay of another run keeps.
"""
