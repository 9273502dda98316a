"""Downloaded data: what there is, getting it, checking it."""
