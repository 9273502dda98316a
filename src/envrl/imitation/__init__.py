"""The warm start before RL: imitation of demonstrations."""
