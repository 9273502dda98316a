"""WebShop without Java, Flask or a tagger: the original's shop as pure functions and arrays."""

from envrl.envs.webshop.goals import Goal, make_goals
from envrl.envs.webshop.index import Index
from envrl.envs.webshop.reward import score
from envrl.envs.webshop.world import WebShop

__all__ = ["Goal", "Index", "WebShop", "make_goals", "score"]
