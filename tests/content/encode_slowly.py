"""Runs encode-content with small blocks and a pause after each batch, to be killed.

Prints to stderr how many texts each rank encodes.
"""

import os
import sys
import time

from learn_torchrec.apps import encode_content
from learn_torchrec.apps.common import options
from learn_torchrec.content import extract
from learn_torchrec.content.encoder import ContentEncoder


class Slow(ContentEncoder):
    def encode_batches(self, texts, known=None):
        sys.stderr.write(f"rank {os.environ['RANK']}: {len(texts)} texts\n")
        for batch in super().encode_batches(texts, known):
            yield batch
            time.sleep(0.05)


extract._BLOCK_ITEMS = 2
extract.encode.__defaults__ = (Slow, True)

if __name__ == "__main__":
    options.run(encode_content.main, sys.argv[1:])
