"""Advantage estimators: one file and one pure function each, in float64, without torch.

The function takes the steps of an update's episodes (`envrl.objective.advantage.Steps`) and returns one advantage a
step. What several of them need is in `common`.
"""
