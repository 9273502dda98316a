"""What a run's files say, for people: an HTML page, a picture, a few lines."""
