"""``python -m lit_llm``."""

import sys

from lit_llm.cli import main

sys.exit(main())
