"""Recipes: what can be set, and how a TOML file and the command line set it."""

from envrl.config.schema import Config

__all__ = ["Config"]
