"""Curricula that ship, a file each; `envrl.curriculum` has what a curriculum is."""
