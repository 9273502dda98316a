"""Turn groups of episodes into the rows of an update, as a recipe says."""
