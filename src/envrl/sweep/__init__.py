"""Sweeps: the runs of several arms and seeds as one queue."""
