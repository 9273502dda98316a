"""Render episodes as text and tokens: write prompts, parse responses."""
