"""The policy's network and tokenizer, built or loaded, and the two ways to run them: whole rows and live slots."""
