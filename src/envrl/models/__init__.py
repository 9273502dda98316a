"""The policy's network and tokenizer, built from scratch or loaded, and the two ways to run it: rows and live slots."""
