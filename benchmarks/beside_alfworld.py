"""The package alfworld beside envrl.alfworld: the same lines of code, games and commands; CPU seconds of one process.

envrl data get alfworld; make textworld
python benchmarks/beside_alfworld.py [GAMES]
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envrl.alfworld import TASK_TYPES
from envrl.alfworld import get_environment as ours
from envrl.envs.data import data_folder

STEPS = 30


def config(folder: str) -> dict[str, Any]:
    """Return the keys of alfworld's base_config.yaml that matter, over one folder of games."""
    return {
        "dataset": {"data_path": folder, "num_train_games": -1},
        "env": {"domain_randomization": False, "task_types": list(TASK_TYPES), "goal_desc_human_anns_prob": 0.0}
        | {"expert_type": "handcoded"},
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }


def measured(
    get_environment: Callable[[str], Any], folder: str, games: int, keep: bool = True
) -> tuple[float, float, list[Any]]:
    """Return CPU seconds a reset and a step, and what was said."""
    env = get_environment("AlfredTWEnv")(config(folder), train_eval="train").init_env(batch_size=1)
    reset = step = 0.0
    said: list[Any] = []
    for game in range(games):
        generator = random.Random(game)
        began = time.process_time()
        obs, infos = env.reset()
        reset += time.process_time() - began
        said.append((obs, infos) if keep else None)
        began = time.process_time()
        for _ in range(STEPS):
            obs, scores, dones, infos = env.step([generator.choice(infos["admissible_commands"][0])])
            said.append((obs, scores, dones, infos) if keep else None)
        step += time.process_time() - began
    return reset / games, step / games / STEPS, said


def main() -> None:
    """Print the table."""
    games = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    source = data_folder("alfworld") / "json_2.1.1" / "valid_seen"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALFWORLD_DATA"] = folder  # else alfworld makes a folder in the user's home
        from alfworld.agents.environment import get_environment as theirs  # pyright: ignore[reportMissingImports]

        for path in sorted(source.rglob("game.tw-pddl"))[:: max(1, 140 // games)][:games]:
            copy = Path(folder, *path.parts[-3:])
            copy.parent.mkdir(parents=True)
            copy.write_bytes(path.read_bytes())
            kind = {"task_type": path.parts[-3].partition("-")[0]}
            (copy.parent / "traj_data.json").write_text(json.dumps(kind))
        slow = measured(theirs, folder, games)
        fast = measured(ours, folder, games)
        again = measured(ours, folder, 50 * games, keep=False)
    assert slow[2] == fast[2], "the two say different things"
    print(f"{games} games, {games * STEPS} steps, everything said is equal")
    print("CPU seconds         alfworld      envrl.alfworld    ratio")
    print(f"a game's first reset  {slow[0]:9.3f}     {fast[0]:.6f}      {slow[0] / fast[0]:9,.0f}")
    print(f"a step in it          {slow[1]:9.4f}     {fast[1]:.7f}     {slow[1] / fast[1]:9,.0f}")
    print(f"a later reset         {slow[0]:9.3f}     {again[0]:.6f}      {slow[0] / again[0]:9,.0f}")
    print(f"a step, games known   {slow[1]:9.4f}     {again[1]:.7f}     {slow[1] / again[1]:9,.0f}")


if __name__ == "__main__":
    main()
