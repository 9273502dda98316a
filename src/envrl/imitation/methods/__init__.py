"""The warm-start methods that ship, a file each."""
