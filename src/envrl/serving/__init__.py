"""Sampling by a server beside the trainer."""
