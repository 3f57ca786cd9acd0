"""Finding the items with the highest inner product: build an index, search it, and check it against an exact twin."""
