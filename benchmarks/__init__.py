"""Side-by-side benchmarks of RPC libraries: `python -m benchmarks --help`, or `python3.11 dev.py bench`."""
