"""`python -m benchmarks` is the comparison with other routers; `make bench` runs it."""

from benchmarks.compare import main

main()
