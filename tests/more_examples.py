"""How many examples a property is tried on: `make fuzz` multiplies them.

The tests try the same examples each time, `make fuzz` others.
"""

import os

from hypothesis import HealthCheck, settings

_TIMES = int(os.environ.get("LEARN_FUZZ_TIMES", "1"))


def tried(count: int) -> settings:
    """Return settings for a property of whole commands, which take their time."""
    return settings(
        deadline=None,
        max_examples=count * _TIMES,
        derandomize=_TIMES == 1,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
        ],
    )
