"""Sokoban as a Gymnasium environment; a level is made for each seed."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envrl.envs.adapters.sokoban_levels import DIRECTIONS, Level, make_level, offsets

_SIGNS = "# .$*@+"


class SokobanEnv(gymnasium.Env[str, np.int64]):
    """Push boxes onto goals: actions 0 to 3 are up, down, left, right; the observation is the level, drawn in signs.

    The reward is the share of the boxes that came to lie on goals with the step, less those pushed off; the episode
    terminates when every box lies on one. Positions that cannot be solved any more go on.
    """

    def __init__(self, size: int = 7, boxes: int = 2) -> None:
        self.size, self.boxes = size, boxes
        self.action_space = spaces.Discrete(len(DIRECTIONS))
        self.observation_space = spaces.Text((size + 1) * size - 1, charset=f"{_SIGNS}\n")
        self.level: Level | None = None
        self._boxes: frozenset[int] = frozenset()
        self._player = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the level of a seed, or without one of the next seed that the generator draws."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self.level = level = make_level(number, self.size, self.boxes)
        self._boxes, self._player = level.boxes, level.player
        return self._drawn(level), {}

    def step(self, action: int | np.int64) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move, and push a box where one stands in the way and the cell behind it is free; else nothing moves."""
        if self.level is None:
            raise RuntimeError("step was called before the first reset")
        floor, goals = self.level.floor, self.level.goals
        offset = offsets(self.size)[DIRECTIONS[action]]
        there = self._player + offset
        before = len(self._boxes & goals)
        pushes = there in self._boxes
        if there in floor and not (pushes and there + offset not in floor - self._boxes):
            self._player = there
            self._boxes = self._boxes - {there} | {there + offset} if pushes else self._boxes
        after = len(self._boxes & goals)
        solved = self._boxes == goals
        return self._drawn(self.level), (after - before) / self.boxes, solved, False, {}

    def _drawn(self, level: Level) -> str:
        signs = []
        for cell in range(self.size**2):
            goal = cell in level.goals
            if cell not in level.floor:
                signs.append("#")
            elif cell in self._boxes:
                signs.append("*" if goal else "$")
            elif cell == self._player:
                signs.append("+" if goal else "@")
            else:
                signs.append("." if goal else " ")
        return "\n".join("".join(signs[start : start + self.size]) for start in range(0, self.size**2, self.size))
