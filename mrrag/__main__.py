"""``python -m mrrag``: the same as the command ``mrrag``."""

import sys

from mrrag.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
