"""Worlds: the protocol, the registry, and the worlds that ship with the package."""

from envrl.envs.protocol import SavableEnv, TextEnv
from envrl.envs.registry import env_names, make, register_env

__all__ = ["SavableEnv", "TextEnv", "env_names", "make", "register_env"]
