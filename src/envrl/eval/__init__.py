"""Evaluation: the success of a policy, with intervals, and its knowledge of the world."""
