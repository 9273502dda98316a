"""Auxiliary objectives beside the policy loss: one file and one function each.

The function takes an update's groups of episodes and yields `Example`s, which become rows of their own, or `InPass`,
tokens of the policy's own rows. Weight, schedule, fraction and placebo are common to all (`envrl.batches.examples`).
"""
