"""Household text games: the engine of ALFWorld's games, its file format, and a generator of new ones."""
