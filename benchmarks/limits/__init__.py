"""How fast it could be: hand-written programs without the guarantees of a library, to measure the distance to."""
