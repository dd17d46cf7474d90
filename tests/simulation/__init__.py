"""The whole system in one process, on a virtual clock: one seed is one run.

A seed gives a *plan*: servers, client pools, their limits, a program of calls, and faults (see `plan`, `drawing`). A
*world* lives through it over an in-memory network, and then through a quiet phase, in which everything has to work
again. What must hold for every seed is said in `world` and `verdict`. The same seed gives the same events, in the same
order, at the same times, so that a failure seen once can be seen again:

    python -m tests.simulation --seed 42            lives through one seed and prints its events
    python -m tests.simulation --seed 42 --shrink   finds the fewest steps of it that still fail
    python -m tests.simulation --seeds 1-10000      runs a range; --jobs 2 in two processes
    python -m tests.simulation --seeds 1-1000 --plant swapped-ids   shows that a bug would be found
"""
