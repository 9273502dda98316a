"""Rewards beside the world's own: one file and one function each.

The function takes an update's groups of episodes, and a function that gives the chance that the policy answers each
example right; it returns one number for each step of each episode, in order. Weight and schedule are common to all.
"""
