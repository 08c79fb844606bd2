import dataclasses
import json

import pytest

from learn_torchrec import config, presets
from learn_torchrec.errors import UserError


def test_overrides_are_typed():
    run = config.apply_overrides(
        presets.Run(),
        [
            "towers.model.encoder.num_layers=3",
            "towers.loss.temperature=0.1",
            "towers.loss.sampling_correction=true",
            "towers.model.item_tower=self",
            "split.actions=buy, click",
            "content.encoder.layers=8,-1",
            "content.prompt.template=null",
        ],
    )
    assert run.towers.model.encoder.num_layers == 3
    assert run.towers.loss.temperature == 0.1
    assert run.towers.loss.sampling_correction is True
    assert run.towers.model.item_tower == "self"
    assert run.split.actions == ("buy", "click")
    assert run.content.encoder.layers == (8, -1)
    assert run.content.prompt.template is None


def test_values_that_depend_on_each_other_are_set_together():
    run = config.apply_overrides(
        presets.Run(),
        ["towers.model.encoder.width=90", "towers.model.encoder.num_heads=5"],
    )
    assert run.towers.model.encoder.width == 90


def test_lists_of_sections_are_json():
    text = '[{"column": "user_id", "num_embeddings": 7}, {"column": "shop"}]'
    run = config.apply_overrides(presets.Run(), [f"ranker.features.sparse={text}"])
    assert [(f.column, f.num_embeddings) for f in run.ranker.features.sparse] == [
        ("user_id", 7),
        ("shop", None),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("towers", "write it as section.field=value"),
        ("tower.loss=1", "unknown name 'tower'; known here: prepare, content, codes"),
        ("towers.loss.tau=1", "unknown name 'tau'; known here: objective"),
        ("towers.loss=1", "loss is a section; set one of: objective"),
        ("towers.loss.temperature.x=1", "temperature has no fields"),
        ("towers.training.epochs=many", "epochs=many: must be a valid integer"),
        ("towers.model.item_tower=both", "'causal', 'self', 'content' or 'projection'"),
        (
            "towers.model.encoder.num_heads=5",
            "towers.model.encoder.width: 768 is not a multiple of num_heads, 5",
        ),
        ("towers.training.epochs=0", "epochs=0: must be greater than 0"),
        ("towers.training.seed=-1", "seed=-1: must be greater than or equal to 0"),
        (f"ranker.training.seed={2**63}", "must be less than 9223372036854775808"),
        (
            "ranker.optimizer.learning_rate=inf",
            "must be less than or equal to 1000000000",
        ),
        ("towers.loss.temperature=0", "temperature=0: must be greater than 0"),
        ("split.actions=", "actions=: needs at least 1"),
        ("split.history_share=2", "history_share=2: must be less than 1"),
        ("ranker.model.embedding_dim=6", "embedding_dim=6: must be a multiple of 4"),
        ("ranker.features.sparse=", "name at least one column"),
        (
            'ranker.features.sparse=[{"colum": "x"}]',
            "entry 1: unknown name colum; known here: column, name, weights",
        ),
        (
            'ranker.features.sparse=[{"column": "age", "name": "user.age"}]',
            "name: 'user.age' has a dot, which names of tables must not",
        ),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(UserError) as caught:
        config.apply_overrides(presets.Run(), [override])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--set {override}")


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_saved_runs_read_back(name, tmp_path):
    run = presets.PRESETS[name]()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict(run)))
    assert config.load(presets.Run, path) == run


def test_saved_runs_with_unknown_or_bad_values_are_refused(tmp_path):
    path = tmp_path / "config.json"
    body = config.to_dict(presets.Run())
    body["towers"]["loss"]["tau"] = 1
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"unknown name towers\.loss\.tau"):
        config.load(presets.Run, path)
    body = config.to_dict(presets.Run())
    body["towers"]["training"]["epochs"] = "many"
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"towers\.training\.epochs"):
        config.load(presets.Run, path)
    with pytest.raises(UserError, match="No such file"):
        config.load(presets.Run, tmp_path / "absent.json")


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.Run().split.min_events = 3


def test_a_message_names_the_option_once(tmp_path):
    path = tmp_path / "config.json"
    body = config.to_dict(presets.Run())
    body["towers"]["training"]["epochs"] = 0
    path.write_text(json.dumps(body))
    with pytest.raises(UserError) as caught:
        config.load(presets.Run, path)
    assert str(caught.value) == (
        f"--config {path}: towers.training.epochs: must be greater than 0, not 0"
    )
    with pytest.raises(UserError) as caught:
        config.apply_overrides(presets.Run(), ["towers.training.epochs=0"])
    assert str(caught.value) == (
        "--set towers.training.epochs=0: must be greater than 0"
    )


def test_rules_between_fields_hold_for_copies_too():
    split = presets.Run().split
    with pytest.raises(ValueError, match="add up to less than 1"):
        config.replace(split, test_users=0.95)


def without(body, *names):
    """Nested dictionaries and lists without some keys, wherever they are."""
    if isinstance(body, dict):
        return {k: without(v, *names) for k, v in body.items() if k not in names}
    return [without(v, *names) for v in body] if isinstance(body, list) else body


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_what_decides_is_all_but_operational_settings(name):
    run = presets.PRESETS[name]()
    operational = ("sharding", "workers", "timeout", "checkpoint", "save_optimizer")
    of_content = ("tokens_per_batch", "device", "trust_remote_code")
    assert config.deciding(run) == without(
        config.to_dict(run), *operational, *of_content
    )
    assert "sharding" in config.to_dict(run.ranker)


@pytest.mark.parametrize(
    ("override", "decides"),
    [
        ("ranker.sharding.kind=row_wise", False),
        ("ranker.training.stream.workers=3", False),
        ("ranker.training.stream.timeout=3", False),
        ("checkpoint.every_steps=3", False),
        ("content.encoder.tokens_per_batch=3", False),
        ("content.encoder.max_tokens=3", True),
        ('ranker.features.sparse=[{"column": "a", "sharding": "row_wise"}]', False),
        ('ranker.features.sparse=[{"column": "b"}]', True),
        ("ranker.training.batch_size=3", True),
        ("split.actions=b", True),
    ],
)
def test_settings_that_decide_no_result(override, decides):
    first = ['ranker.features.sparse=[{"column": "a"}]']
    one = config.apply_overrides(presets.Run(), first)
    other = config.apply_overrides(one, [override])
    assert one != other
    assert (config.deciding(one) != config.deciding(other)) is decides
