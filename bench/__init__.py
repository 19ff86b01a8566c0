"""Benchmarks: side by side with peers in one run, ratios only. `make bench` runs them and prints the table."""
