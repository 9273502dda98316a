"""Policy losses: one file and one pure function each, in torch.

The function takes the counted tokens of a batch, end to end, and returns a loss for each of them. What several of them
need is in `common`; `envrl.objective.policy` finds them by name and adds them up.
"""
