"""EnvRL's auxiliary losses for other people's training stacks: rows from any trajectories, and their loss.

`envrl.stacks.trl` and `envrl.stacks.verl` put them into TRL's and verl's trainers.
"""

from __future__ import annotations

from envrl.stacks.rows import AuxiliaryRow, Episode, Objective, auxiliary_rows

__all__ = ["AuxiliaryRow", "Episode", "Objective", "auxiliary_rows"]
