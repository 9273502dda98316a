"""From groups of episodes to the rows of an update, as a recipe says."""
