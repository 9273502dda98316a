"""Memories that ship, a file each; `envrl.memory` has what a memory is.

`remembering` connects a run with its memory, `file` writes and reads it; `similarity` compares texts.
"""
