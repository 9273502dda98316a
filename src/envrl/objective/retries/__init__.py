"""What helps a failed attempt when it is tried again: one file and one function each.

The function takes an update's groups and `solve`, which gives the commands of a task's walkthrough; it yields `Retry`s.
"""
