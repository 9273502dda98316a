"""What a run takes of memory and of time, from its recipe and the shape of its model; nothing is run."""
