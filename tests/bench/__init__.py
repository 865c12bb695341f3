"""What snap-upgrade costs, as ratios measured in one interleaved run: see docs/benchmarks.md."""
