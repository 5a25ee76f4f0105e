"""Names of methods, peak rules and presets: here, so that the command line need not import them."""

PURSUITS = ("matching-pursuit", "omp")
"""Names of the greedy methods."""

GRID_METHODS = ("ista", "fista", "active-set", "split-bregman", *PURSUITS)
"""Names of the grid methods."""

DEFAULT_GRID_METHOD = "active-set"
"""The most accurate grid method."""

OFF_GRID_METHODS = ("moments", "continuous", "posterior")
"""Names of the grid-free methods."""

DEFAULT_METHOD = "posterior"
"""The most accurate method where fluxes are known to lie in a range."""

PEAK_RULES = ("every-cell", "local-maxima", "mass-merging")
"""Names of the peak rules."""

PRESETS = ("csist-100k", "seq-csist")
"""Names of the presets."""
