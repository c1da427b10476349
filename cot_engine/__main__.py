import sys

from cot_engine.cli import main

sys.exit(main())
