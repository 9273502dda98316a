"""How good a policy is, with intervals, and how well it knows its world."""
