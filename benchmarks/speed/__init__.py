"""Benchmarks of speed: each row a ratio of two things timed side by side in one run."""
