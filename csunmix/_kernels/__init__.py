"""Compiled loops on plain arrays; each has a plain NumPy twin in the tests that it must equal."""
