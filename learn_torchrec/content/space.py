"""The space of content vectors: stated in the manifest, shown by canaries."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from learn_torchrec import spaces
from learn_torchrec.array_files import read_checked, write_checked
from learn_torchrec.arrays import Float16Array
from learn_torchrec.config import deciding
from learn_torchrec.content.encoder import ContentEncoder
from learn_torchrec.content.extract import (
    ContentConfig,
    encoder_facts,
    encoder_identity,
)
from learn_torchrec.content.store import ContentStore
from learn_torchrec.errors import UserError
from learn_torchrec.text import parse_json

_FACTS_FILE = "space.json"


def content_space(config: ContentConfig, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the space of a configuration; `facts` are those of the loaded encoder."""
    return spaces.space(
        encoder=encoder_identity(config)[:16],
        prompt=spaces.digest_of(deciding(config.prompt)),
        revision=facts.get("revision"),
        dtype=facts.get("dtype"),
    )


class SpaceKeeper:
    """Finds out the space of a store in the making, on the rank that writes.

    Args:
        config: of the encoder and prompt.
        earlier: the store whose vectors are reused, if any.
        directory: of the interrupted run's vectors; keeps the canaries too, so that a
            run that has nothing left to encode need not load the model.
    """

    def __init__(
        self, config: ContentConfig, earlier: ContentStore | None, directory: Path
    ) -> None:
        self._config, self._earlier, self._directory = config, earlier, directory
        self._space: dict[str, str] | None = None
        self._canaries: Float16Array | None = None

    def meet(self, encoder: ContentEncoder) -> None:
        """Encode the canaries, and compare them with those of the earlier store.

        Raises:
            UserError: the encoder no longer gives the earlier store's vectors.
        """
        facts = encoder_facts(encoder)
        self._space = content_space(self._config, facts)
        self._canaries = encoder.encode(spaces.CANARY_TEXTS).astype(np.float16)
        self._refuse_other_vectors()
        self._directory.mkdir(parents=True, exist_ok=True)
        write_checked(self._directory / spaces.CANARIES_FILE, self._canaries)
        working = self._directory / f".{_FACTS_FILE}.tmp"
        working.write_text(json.dumps(self._space), encoding="utf-8")
        working.replace(self._directory / _FACTS_FILE)

    def finish(self, working: Path) -> dict[str, str]:
        """Write the canaries into the artefact, and return the space for its facts."""
        if self._canaries is None:
            self._remember()
        if self._canaries is not None:
            np.save(working / spaces.CANARIES_FILE, self._canaries)
        return self._space or content_space(self._config, {})

    def _remember(self) -> None:
        """Take what an interrupted run or the earlier store knows."""
        known = self._directory / _FACTS_FILE
        with contextlib.suppress(OSError, ValueError):
            self._canaries = read_checked(self._directory / spaces.CANARIES_FILE)
            self._space = parse_json(known.read_text(encoding="utf-8"))
            return
        if self._earlier is not None:
            self._space = spaces.space_of(self._earlier.manifest) or None
            self._canaries = _canaries_of(self._earlier)

    def _refuse_other_vectors(self) -> None:
        if self._earlier is None or self._space is None or self._canaries is None:
            return
        before = spaces.space_of(self._earlier.manifest)
        where = f"--reuse {self._earlier.directory}: its vectors"
        fix = "leave --reuse out, and see align-space"
        # Another prompt is no other space of the encoder: texts have their own hashes.
        before.pop("prompt", None)
        spaces.refuse_other_space(before, self._space, where, fix)
        known = _canaries_of(self._earlier)
        if known is None:
            return
        least = float(spaces.cosines(known, self._canaries).min())
        if least < spaces.LEAST_COSINE:
            raise UserError(
                f"{where} are not what the model gives today (cosine {least:.3f} for "
                f"the same text, although its name is the same); {fix}"
            )


def _canaries_of(store: ContentStore) -> Float16Array | None:
    return spaces.read_canaries(store.directory, store.dim)
