"""The table of stages, and what must agree with it."""

import ast
import importlib
from pathlib import Path

import pytest

from learn_torchrec.apps import quickstart
from learn_torchrec.apps.benchmarks import stages as tried
from learn_torchrec.apps.stages import STAGES, Stage, Step, input_options

ROOT = Path(__file__).parents[1]
PIPELINES = {"quickstart": quickstart.STEPS, "benchmarks": tried.STEPS}


def test_every_app_is_a_stage():
    files = [
        path
        for path in (ROOT / "apps").glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    ]
    assert {path.stem for path in files} - {"main"} == {s.app for s in STAGES.values()}


def test_every_torchx_component_is_a_distributed_stage():
    """A new stage need not have one: `learn.stage` runs any."""
    tree = ast.parse((ROOT / "torchx_components" / "learn.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    public = {name for name in functions if not name.startswith("_")}
    distributed = {stage.app for stage in STAGES.values() if stage.distributed}
    assert "stage" in public
    assert public - {"stage"} <= distributed
    assert {step.stage.app for step in quickstart.STEPS} <= public


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.command)
def test_an_app_has_the_options_of_its_stage(stage: Stage, capsys):
    app = importlib.import_module(f"learn_torchrec.apps.{stage.app}")
    with pytest.raises(SystemExit) as ended:
        app.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: learn-torchrec {stage.command} ")
    for kind in stage.reads:
        assert f"--{kind} " in text
    if stage.makes is not None:
        assert "--overwrite" in text


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_are_wired_by_the_table(name: str):
    steps = PIPELINES[name]
    done: dict[str, Step] = {}
    for step in steps:
        for given in step.inputs:
            assert done[given].stage.makes in step.stage.reads, (step, given)
        done[step.name] = step
    assert len(done) == len(steps)


def test_inputs_are_options_named_by_their_kind():
    *_, scoring = quickstart.STEPS
    assert input_options(scoring, quickstart.STEPS, Path("runs")) == [
        *("--ranker", "runs/ranker_learn", "--vectors", "runs/vectors")
    ]
