"""What an app would make: its recipe, and what its manifest says."""

import json

from learn_torchrec import config, presets
from learn_torchrec.apps.common import job, options
from learn_torchrec.artifact import read_manifest
from learn_torchrec.publish import write_artifact


def planned(tmp_path, *settings):
    parser = options.parser("try", "a job")
    options.add_output(parser, "it")
    overrides = [f"--set={setting}" for setting in settings]
    args = parser.parse_args(["--out", str(tmp_path / "out"), *overrides])
    return job.describe(args, "ranker", ("split", "ranker"), {"log": "x"})


def test_operational_settings_are_recorded_and_decide_nothing(tmp_path):
    plain = planned(tmp_path)
    assert not plain.is_done()
    with write_artifact(tmp_path / "out", **plain.manifest(5, {})):
        pass
    again = planned(
        tmp_path,
        "ranker.sharding.kind=row_wise",
        "ranker.training.stream.workers=2",
        "checkpoint.every_steps=5",
        "towers.training.epochs=1",  # another stage's
    )
    assert again.is_done()
    manifest = read_manifest(tmp_path / "out", "ranker")
    assert manifest.config["ranker"] == config.to_dict(presets.Run().ranker)
    assert manifest.config["ranker"]["training"]["stream"]["workers"] == 0
    assert "towers" not in manifest.config
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved == config.to_dict(presets.Run())


def test_other_settings_decide(tmp_path):
    recipes = {
        planned(tmp_path).recipe,
        planned(tmp_path, "ranker.training.batch_size=7").recipe,
        planned(tmp_path, "split.towers_until=40%").recipe,
    }
    assert len(recipes) == 3
