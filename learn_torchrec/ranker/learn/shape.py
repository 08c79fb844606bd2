"""Widths of LEARN's inputs, which its modules need to know."""

from dataclasses import dataclass

from learn_torchrec.ranker.learn.config import Space


@dataclass(frozen=True)
class LearnShape:
    """Widths of LEARN's inputs.

    Attributes:
        vector_dim: D, of the towers' vectors; 0 without towers.
        content_dim: R, of the reduced content; 0 without it.
        rates: of the neighbours' rates; 0 without.
        items: with a vector; rows of the id table of attention.
    """

    vector_dim: int = 0
    content_dim: int = 0
    rates: int = 0
    items: int = 0

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces in which items have vectors."""
        dims: dict[Space, int] = {
            "content": self.content_dim,
            "towers": self.vector_dim,
        }
        return tuple(space for space, dim in dims.items() if dim)
