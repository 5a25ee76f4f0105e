"""``python -m csunmix``: the command line."""

import sys

from csunmix.cli import main

if __name__ == "__main__":
    sys.exit(main())
