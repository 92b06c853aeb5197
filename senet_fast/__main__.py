import sys

from senet_fast.cli import main

sys.exit(main())
