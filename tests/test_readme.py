"""What the README shows is what the code does and what a run measured."""

import re

from learn_torchrec.apps.benchmarks import readme

README = readme.README.read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 260


def test_its_tables_are_the_measured_ones():
    assert readme.render(README) == README


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope = {}
    exec(example, scope)
    scope["loss"].backward()
    assert scope["learn"].auxiliary.head[0].weight.grad.abs().sum() > 0
