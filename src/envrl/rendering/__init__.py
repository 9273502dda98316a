"""Episodes as text and tokens: prompts, and what a response says."""
