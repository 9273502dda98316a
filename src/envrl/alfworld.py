"""The package alfworld's own interface to its text games, played by our engine.

    from envrl.alfworld import get_environment     # in place of alfworld.agents.environment

    env = get_environment("AlfredTWEnv")(config, train_eval="train").init_env(batch_size=8)
    obs, infos = env.reset()
    obs, scores, dones, infos = env.step([commands[0] for commands in infos["admissible_commands"]])

`config` is what `configs/base_config.yaml` of alfworld holds. The games are the files that it names, in the order in
which alfworld plays them on the same machine.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from envrl.envs.data import data_folder
from envrl.envs.household.engine import Answer, Play
from envrl.envs.household.expert import Expert, ExpertEpisode, placement_prior
from envrl.envs.household.pddl import check_game, load_game
from envrl.envs.household.sources import game_of_file
from envrl.errors import UserError, suggest
from envrl.sequences import evenly_spaced
from envrl.types import Observation

TASK_TYPES = {
    1: "pick_and_place_simple",
    2: "look_at_obj_in_light",
    3: "pick_clean_then_place_in_recep",
    4: "pick_heat_then_place_in_recep",
    5: "pick_cool_then_place_in_recep",
    6: "pick_two_obj_and_place",
}
_FOLDERS = {
    "train": ("data_path", "num_train_games"),
    "eval_in_distribution": ("eval_id_data_path", "num_eval_games"),
    "eval_out_of_distribution": ("eval_ood_data_path", "num_eval_games"),
}
"""The key of `dataset` that names the folder of games, and the one that says how many of them are played."""
_FIRST_SEED = 1234  # the original's
_PRIOR_GAMES = 400

Infos = dict[str, list[Any]]
"""What there is to know beside the observations: a list by key, with an entry a game."""


def get_environment(env_type: str) -> type[AlfredTWEnv]:
    """Return the environment of this type; only `AlfredTWEnv`, the text games, is here. Raises `UserError`."""
    if env_type != "AlfredTWEnv":
        raise UserError(f"envrl.alfworld plays text games, 'AlfredTWEnv', and not '{env_type}'")
    return AlfredTWEnv


class AlfredTWEnv:
    """The games of a split: `game_files`, their paths, and `num_games`; `init_env` plays them.

    `config` is a mapping as in alfworld's `base_config.yaml`; only the keys that alfworld reads for text games are
    looked at. `train_eval` is "train", "eval_in_distribution" or "eval_out_of_distribution". A file that is no whole
    game is left out with a warning. Raises `UserError` for what is missing or cannot be had here.
    """

    def __init__(self, config: Mapping[str, Any], train_eval: str = "train") -> None:
        self.config = config
        self.train_eval = train_eval
        if train_eval not in _FOLDERS:
            raise UserError(f"there is no split '{train_eval}' of alfworld's{suggest(train_eval, _FOLDERS)}")
        if _setting(config, "env.goal_desc_human_anns_prob") > 0:
            warnings.warn("env.goal_desc_human_anns_prob changes nothing, as in alfworld", stacklevel=2)
        folder, limit = _FOLDERS[train_eval]
        kinds = {TASK_TYPES[number] for number in _setting(config, "env.task_types") if number in TASK_TYPES}
        files = _game_files(_expanded(_setting(config, f"dataset.{folder}"), f"dataset.{folder}"), kinds)
        most = _setting(config, f"dataset.{limit}")
        self.game_files = files[:most] if most > 0 else files
        self.num_games = len(self.game_files)

    def init_env(self, batch_size: int) -> BatchEnv:
        """Return `batch_size` games at a time as one environment."""
        method = _setting(self.config, "general.training_method")
        if method not in ("dqn", "dagger"):
            raise UserError(f"general.training_method is 'dqn' or 'dagger', not {method!r}")
        if self.train_eval == "train" and _setting(self.config, "env.domain_randomization"):
            raise UserError("env.domain_randomization (names in random order) is not here: set it to False")
        most = _setting(self.config, f"{'rl' if method == 'dqn' else method}.training.max_nb_steps_per_episode")
        expert = None
        if method == "dagger" and self.train_eval == "train":
            if (kind := _setting(self.config, "env.expert_type")) != "handcoded":
                raise UserError(
                    f"env.expert_type = '{kind}' is not here: set it to 'handcoded', or the method to 'dqn'"
                )
            files = [self.game_files[i] for i in evenly_spaced(self.num_games, min(self.num_games, _PRIOR_GAMES))]
            expert = Expert(placement_prior(map(load_game, files)))
        return BatchEnv(self.game_files, batch_size=batch_size, max_episode_steps=most, expert=expert)


class _Game:
    """One of the games that are played at the same time, with its last answer; once over, that stays."""

    def __init__(self, path: str, most: int, player: ExpertEpisode | None) -> None:
        self.path, self._left, self._player = path, most, player
        self._play = Play(game_of_file(path))
        self.answer: Answer = self._play.answer()
        self.over = False
        self.plan = ["look"] if player is None else [player.act(_observed(self.answer))]

    def step(self, command: str) -> None:
        if self.over:
            return
        self.answer = self._play.step(command)
        self._left -= 1
        self.over = self.answer.done or self._left <= 0
        if self._player is not None:
            self._player.last = command
            self.plan = ["look"] if self.answer.done else [self._player.act(_observed(self.answer))]


class BatchEnv:
    """`batch_size` games played at the same time, as `init_env` of alfworld returns them.

    Observations, scores (0, or 1 once the task is done) and dones are tuples with an entry a game; infos are lists by
    key: `won`, `admissible_commands`, `extra.gamefile` (after a step None, as in alfworld), and where there is an
    expert `extra.expert_plan`, its next command. A game that is over, by its task or after `max_episode_steps`, repeats
    its last answer until `reset`.
    """

    def __init__(
        self,
        gamefiles: Sequence[str],
        *,
        batch_size: int = 1,
        max_episode_steps: int = 50,
        expert: Expert | None = None,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("max_episode_steps", max_episode_steps)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"{name} is a whole number above 0, not {number!r}")
        self.gamefiles = list(gamefiles)
        self.batch_size = batch_size
        self._most, self._expert = max_episode_steps, expert
        self._games: list[_Game] = []
        self.last_commands: Sequence[str | None] = [None] * batch_size
        self.seed(_FIRST_SEED)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Begin the order of the games anew: shuffled by this seed, and shuffled again after each round."""
        self._order = _rounds(self.gamefiles, np.random.RandomState(seed))
        return [seed]

    def reset(self) -> tuple[tuple[str, ...], Infos]:
        """Start the next games and return their first observations, and infos."""
        self._games = [
            _Game(path, self._most, self._expert.start(None) if self._expert else None)
            for path in [next(self._order) for _ in range(self.batch_size)]
        ]
        self.last_commands = [None] * self.batch_size
        self.obs = tuple(game.answer.text for game in self._games)
        return self.obs, self._infos([game.path for game in self._games])

    def skip(self, nb_games: int = 1) -> None:
        """Leave out the next games."""
        for _ in range(nb_games):
            next(self._order)

    def step(self, commands: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...], tuple[bool, ...], Infos]:
        """Carry out one command in each game; return observations, scores, dones and infos.

        Raises `RuntimeError` before the first reset and `UserError` for another number of commands.
        """
        if not self._games:
            raise RuntimeError("step was called before the first reset")
        if not isinstance(commands, (list, tuple)) or len(commands) != self.batch_size:
            raise UserError(f"step takes a list of {self.batch_size} commands, one a game, not {commands!r:.80}")
        for game, command in zip(self._games, commands, strict=True):
            game.step(command)
        self.last_commands = commands
        self.obs = tuple(game.answer.text for game in self._games)
        scores = tuple(int(game.answer.done) for game in self._games)
        return self.obs, scores, tuple(game.over for game in self._games), self._infos([None] * self.batch_size)

    def close(self) -> None:
        """Forget the games; `reset` starts others."""
        self._games = []

    def _infos(self, files: Sequence[str | None]) -> Infos:
        infos: Infos = {
            "won": [game.answer.done for game in self._games],
            "admissible_commands": [list(game.answer.admissible) for game in self._games],
            "extra.gamefile": list(files),
        }
        if self._expert is not None:
            infos["extra.expert_plan"] = [game.plan for game in self._games]
        return infos


def _observed(answer: Answer) -> Observation:
    return Observation(answer.text, answer.admissible)


def _rounds(files: Sequence[str], generator: np.random.RandomState) -> Iterator[str]:
    """Yield all files again and again, each round shuffled from the order of the one before."""
    order: list[str] = list(files)
    shuffle: Callable[[list[str]], None] = generator.shuffle
    while order:
        shuffle(order)
        yield from order


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of the nested mapping by its dotted key; raises `UserError` where it is missing."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"the configuration has no {key}, which alfworld's base_config.yaml has")
        value = value[part]
    return value


def _expanded(folder: Any, key: str) -> str:
    """Return a folder of the configuration with its variables put in, `$ALFWORLD_DATA` also where it is not set."""
    if not isinstance(folder, str) or not folder:
        raise UserError(f"{key} names the folder of the games, and is {folder!r}")
    if "ALFWORLD_DATA" in folder and not os.environ.get("ALFWORLD_DATA"):
        data = str(data_folder("alfworld"))
        folder = folder.replace("${ALFWORLD_DATA}", data).replace("$ALFWORLD_DATA", data)
    path = os.path.expandvars(os.path.expanduser(folder))
    if not os.path.isdir(path):
        raise UserError(f"{key} names '{path}', which is no folder; 'envrl data get alfworld' gets the games")
    return path


def _game_files(folder: str, kinds: set[str]) -> list[str]:
    """Return the games below a folder in the order of alfworld, which walks it from below; raises `UserError`."""
    files, damage = [], []
    for root, _, names in os.walk(folder, topdown=False):
        if "game.tw-pddl" not in names or "movable" in root or "Sliced" in root or _kind(root, names) not in kinds:
            continue
        path = os.path.join(root, "game.tw-pddl")
        try:
            check_game(path)
        except UserError as error:
            damage.append(str(error))
        else:
            files.append(path)
    if damage:
        warnings.warn(f"left out {len(damage)} games of {folder}: {damage[0]}", stacklevel=4)
    if not files:
        raise UserError(f"{folder} holds no text game of the task types asked for; 'envrl data get alfworld' gets them")
    return files


def _kind(root: str, names: Sequence[str]) -> str:
    """Return the task's type as its `traj_data.json` has it; without that file, as its folder is named."""
    if "traj_data.json" not in names:
        return os.path.basename(os.path.dirname(root)).partition("-")[0]
    try:
        with open(os.path.join(root, "traj_data.json"), encoding="utf-8") as file:
            return str(json.load(file)["task_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root}/traj_data.json does not say the task's type: get the games anew") from error
