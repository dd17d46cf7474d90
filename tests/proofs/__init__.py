"""Whether what is promised holds: `python -m tests.proofs --help`."""
