"""Search Python's own standard library with a process for each share of it, and a gateway over all of them.

`python -m examples.codesearch` shows it; README.md beside this file says which file shows what.
"""
