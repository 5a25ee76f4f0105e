"""``python -m csunmix``: the command line."""

import sys

from csunmix.cli import program

if __name__ == "__main__":
    sys.exit(program())
