"""The checks of `learn-torchrec doctor`, each a small function of its own."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at, a word or two.
        ok: whether this project can run with it.
        found: what is there, one line.
        fix: what to do about it, one line; empty when `ok`.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""

    def line(self) -> str:
        """Return the check as one line of the report."""
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"{'OK' if self.ok else 'PROBLEM':<8} {self.name:<15} {self.found}{fix}"


def good(name: str, found: str) -> Check:
    """Return a passed check."""
    return Check(name=name, ok=True, found=found)


def problem(name: str, found: str, fix: str) -> Check:
    """Return a failed check."""
    return Check(name=name, ok=False, found=found, fix=fix)
