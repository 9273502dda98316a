"""Objectives beside the policy's: a file each, a function of an update's groups of episodes.

It yields `Example`s, which become rows of their own, or `InPass`, tokens of the policy's own rows. Weight, schedule,
fraction and placebo are not its business: they are the same for all (`envrl.samples.auxiliary`).
"""
