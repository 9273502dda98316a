"""Statistics of runs: intervals of one evaluation, aggregates over seeds, paired differences, power.

Pure functions of numbers. What needs scipy stands in modules of its own, since its import takes a second:
`envrl.statistics.aggregate`, `.paired`, `.power`.
"""

from envrl.statistics.intervals import deviation, mean_interval, paired_interval, pooled, sign_test, wilson

__all__ = ["deviation", "mean_interval", "paired_interval", "pooled", "sign_test", "wilson"]
