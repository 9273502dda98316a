"""Recipes: the settings, and how a TOML file and the command line set them."""

from envrl.config.schema import Config

__all__ = ["Config"]
