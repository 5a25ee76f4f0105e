"""Networks of published sizes in PyTorch, untrained: how fast they run depends on size alone."""
