"""Worlds of other packages as text worlds, each behind an extra that is named by what it brings."""
