"""Teachers of the policy's own tokens: one file and one function each.

The function takes an update's groups of episodes and yields `Lesson`s: which episodes are taught, and what the teacher
is told beside them. Weight and schedule are common to all (`envrl.batches.teaching`).
"""
