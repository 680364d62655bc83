"""`python -m tests.drill --faults=100`: see `drill.command`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from drill.command import main

if __name__ == '__main__':
    sys.exit(main())
