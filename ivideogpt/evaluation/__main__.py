"""``python -m ivideogpt.evaluation``: score a world model on recorded episodes; see also ``tokenizer``, ``compare``."""

import sys

from ivideogpt.commands.evaluate import main
from ivideogpt.errors import cli

if __name__ == "__main__":
    cli(lambda: main(sys.argv[1:]))
