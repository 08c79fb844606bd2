"""The preset `default`: what is derived from planted logs, and what may override it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_torchrec.datasets import open_dataset
from learn_torchrec.datasets.histories import Catalogue
from learn_torchrec.datasets.split import resolve_times
from learn_torchrec.derived import run
from learn_torchrec.derived.run import derive
from learn_torchrec.errors import UserError
from learn_torchrec.towers.holdout import split_towers

START, DAY = 1_600_000_000, 86_400


def write(directory, log, shown=None, items=None):
    """Write a data set; `log` rows are (user, item, day, action), `shown` likewise."""
    directory.mkdir(exist_ok=True)
    users, chosen, days, actions = map(list, zip(*log, strict=True))
    ids = sorted({*chosen, *(row[1] for row in shown or [])})
    if items is None:
        items = {"title": [f"thing {item}" for item in ids]}
    pq.write_table(pa.table({"item_id": ids, **items}), directory / "items.parquet")
    times = [START + int(day * DAY) for day in days]
    table = {"user_id": users, "item_id": chosen, "timestamp": times, "action": actions}
    pq.write_table(pa.table(table), directory / "interactions.parquet")
    if shown is not None:
        users, chosen, days, labels = map(list, zip(*shown, strict=True))
        times = [START + int(day * DAY) for day in days]
        table = {"user_id": users, "item_id": chosen, "timestamp": times}
        path = directory / "impressions.parquet"
        pq.write_table(pa.table(table | {"label": labels}), path)
    return open_dataset(f"parquet:{directory}")


def visits(users=200, each=20, repeats=False, seed=0):
    """Every user has `each` events over 100 days; the last tenth of them is new."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        first = 60 if user >= users * 0.9 else 0
        for number in range(each):
            item = 1 if repeats and number % 2 else 10 + number * 7 % 97
            rows.append((user, item, random.uniform(first, 100), "buy"))
    return rows


def settings(derived):
    return {choice.setting: choice for choice in derived.choices}


def test_a_shop(tmp_path):
    log = [*visits(repeats=True), (1, 10, 5, "refund"), (1, 10, 5, "view")]
    derived = derive(write(tmp_path, log))
    run = derived.run
    assert run.split.actions == ("buy", "view")  # a refund is no sign of interest
    assert "refund" in settings(derived)["split.actions"].reason
    assert run.towers.model.repeat
    assert run.towers.model.popularity
    assert not run.retrieval.filter_history
    assert derived.features is None
    # 180 users are known, a tenth of them validates, a quarter of the rest: a batch.
    assert run.towers.training.batch_size == 32
    assert derive(open_dataset(f"parquet:{tmp_path}")).run == run


def test_where_nothing_repeats_histories_are_filtered(tmp_path):
    run = derive(write(tmp_path, visits())).run
    assert not run.towers.model.repeat
    assert not run.towers.model.popularity
    assert run.retrieval.filter_history


def test_a_log_of_negatives_alone_keeps_them(tmp_path):
    log = [(user, item, day, "skip") for user, item, day, _ in visits()]
    assert derive(write(tmp_path, log)).run.split.actions == ("skip",)


@pytest.mark.parametrize(("each", "fewest"), [(3, 4), (9, 7), (60, 10)])
def test_half_of_the_users_have_enough_events(tmp_path, each, fewest):
    run = derive(write(tmp_path, visits(each=each))).run
    assert abs(run.split.min_events - fewest) <= 1


def test_the_objective_follows_the_catalogue_and_the_users_wishes(
    tmp_path, monkeypatch
):
    dataset = write(tmp_path, visits())

    def towers(*overrides):
        return derive(dataset, overrides).run.towers

    usual = towers()
    assert (usual.loss.objective, usual.model.inputs) == ("next_item", "content+id")
    assert (usual.loss.candidates, usual.training.smoothing) == (0, 3)
    for wish in (
        "towers.loss.objective=dense_all_action",
        "towers.model.item_tower=causal",
        "towers.loss.sampling_correction=true",
        "towers.sampling.num_target_samples=3",
    ):
        paper = towers(wish)
        assert paper.loss.objective == "dense_all_action"
        assert (paper.loss.sampling_correction, paper.model.inputs) == (True, "content")
    assert towers("towers.sampling.history_length=9").loss.objective == "next_item"
    assert towers("towers.model.item_tower=self").loss.objective == "next_item"
    assert towers("towers.model.inputs=content").model.inputs == "content"
    assert usual.model.residual
    assert not towers("towers.model.residual=false").model.residual
    for wish in ("inputs=id", "item_tower=content", "standardize=false"):
        assert not towers(f"towers.model.{wish}").model.residual
    with monkeypatch.context() as many:
        many.setattr(run, "_FEW_USERS", 100)
        assert not towers().model.residual
    monkeypatch.setattr(run, "_MOST_CANDIDATES", 15)  # of 20 items
    assert towers().loss.candidates == 15
    monkeypatch.setattr(run, "_MANY_ITEMS", 19)
    assert towers().loss.objective == "dense_all_action"


@pytest.mark.parametrize("users", [4, 6, 9])
@pytest.mark.parametrize("holdout", ["new_users", "time"])
def test_of_few_users_some_are_held_out(tmp_path, users, holdout):
    """A share of the hashed ids may have none; `split_towers` refuses that."""
    log = [row for row in visits(users=users + 1) if row[0] < users]
    if holdout == "new_users":
        log += [(99, 10 + n, 90 + n, "buy") for n in range(9)]
    shown = shown_between(0, 100) if holdout == "new_users" else None
    dataset = write(tmp_path, log, shown)
    derived = derive(dataset)
    assert derived.run.split.holdout == holdout
    sequences = dataset.sequences(Catalogue.of(dataset), ("buy",))
    split_towers(
        sequences, resolve_times(derived.run.split, dataset.times), derived.run.split
    )
    assert derived.run.towers.training.batch_size <= users


def test_holdout_without_new_users_and_without_dates(tmp_path):
    log = [row for row in visits() if row[0] < 180]  # nobody is new
    run = derive(write(tmp_path / "one", log)).run
    assert (run.split.holdout, run.split.towers_until) == ("time", "80%")
    positions = [(u, i, n / DAY - START / DAY, a) for n, (u, i, _, a) in enumerate(log)]
    run = derive(write(tmp_path / "two", positions)).run
    assert run.split.holdout == "leave_one_out"


@pytest.mark.parametrize(("users", "holdout"), [(400, "time"), (600, "new_users")])
def test_new_users_are_the_test_if_they_are_some_and_many(tmp_path, users, holdout):
    """Of 400 they are 40, too few; of 600 they are 60, but not if 1,000 come first."""
    log = visits(users=users, each=5)
    assert derive(write(tmp_path / "one", log)).run.split.holdout == holdout
    log += [(user, 10, day, "buy") for user in range(2000, 3000) for day in (1, 99)]
    assert derive(write(tmp_path / "two", log)).run.split.holdout == "time"


@pytest.mark.parametrize(("each", "length"), [(20, 400), (600, 600)])
def test_repeats_are_counted_over_almost_everybodys_whole_history(
    tmp_path, each, length
):
    log = visits(users=20, each=each, repeats=True)
    log += [(99, 1, day / 100, "buy") for day in range(9_000)]
    run = derive(write(tmp_path, log)).run
    assert run.towers.model.repeat_length == length


@pytest.mark.parametrize(("lines", "baskets"), [(2, 0.0), (4, 0.5)])
def test_receipts_of_several_lines_are_baskets(tmp_path, lines, baskets):
    """Half of the events share the moment of the one before, or three quarters."""
    log = [
        (user, 10 + (7 * visit + line) % 97, day, "buy")
        for user, _, day, _ in visits(users=100, each=5)
        for visit, line in enumerate(range(lines))
    ]
    derived = derive(write(tmp_path, log))
    assert derived.run.towers.loss.baskets == baskets
    assert "share the moment" in settings(derived)["towers.loss.baskets"].reason


def test_impressions_matter_to_the_split_only_where_a_ranker_follows(tmp_path):
    log = [row for row in visits() if row[0] < 180]  # nobody is new
    dataset = write(tmp_path, log, shown_between(60, 99))
    ranked, alone = (derive(dataset, for_ranker=each) for each in (True, False))
    assert ranked.run.split.holdout == "new_users"
    assert "impressions" in settings(ranked)["split.towers_until"].reason
    assert (alone.run.split.holdout, alone.run.split.towers_until) == ("time", "80%")
    chosen = derive(dataset, ["split.holdout=new_users"], for_ranker=False).run.split
    assert (chosen.holdout, chosen.towers_until) == ("new_users", "50%")


def test_only_the_largest_towers_learn_at_the_papers_rate(tmp_path, monkeypatch):
    """Small towers learn little in a small log's passes at that rate."""
    dataset = write(tmp_path, visits())
    rate = 1e-3
    for medium, large, width in ((10**7, 10**8, 128), (10, 10**8, 256), (1, 10, 768)):
        monkeypatch.setattr(run, "_MEDIUM_LOG", medium)
        monkeypatch.setattr(run, "_LARGE_LOG", large)
        towers = derive(dataset).run.towers
        assert towers.model.encoder.width == width
        assert (towers.optimizer.learning_rate == rate) == (width < 768)


def shown_between(first, last, count=600):
    days = np.linspace(first, last, count)
    return [(n % 200, 10 + n % 97, day, n % 3 == 0) for n, day in enumerate(days)]


@pytest.mark.parametrize(
    ("first", "last"), [(0, 100), (60, 99), (95, 99), (0, 30), (20, 25), (101, 120)]
)
def test_moments_give_ranker_and_test_a_part(tmp_path, first, last):
    """Whatever time the impressions cover, both get some, and the towers a log."""
    dataset = write(tmp_path, visits(), shown_between(first, last))
    run = derive(dataset).run
    times = resolve_times(run.split, dataset.times)
    shown = dataset.impressions["timestamp"].to_numpy()
    between = (shown >= times.towers_until) & (shown < times.test_from)
    assert between.mean() > 0.25
    assert (shown >= times.test_from).mean() > 0.15
    assert (dataset.times < times.towers_until).mean() > 0.05


@pytest.mark.parametrize(("first", "last"), [(60, 99), (90, 119)])
def test_towers_learn_until_the_first_of_late_impressions(tmp_path, first, last):
    dataset = write(tmp_path, visits(), shown_between(first, last))
    times = resolve_times(derive(dataset).run.split, dataset.times)
    assert times.towers_until == dataset.impression_times.min()


def test_what_is_set_is_respected_and_not_listed(tmp_path):
    dataset = write(tmp_path, visits(), shown_between(0, 100))
    overrides = ["split.min_events=15", "towers.training.batch_size=6"]
    derived = derive(dataset, overrides)
    assert derived.run.split.min_events == 15
    assert derived.run.towers.training.batch_size == 6
    assert not {"split.min_events", "towers.training.batch_size"} & set(
        settings(derived)
    )
    # The number of training users follows from the set minimum.
    fewer = settings(derived)["towers.training.epochs"].reason
    assert fewer != settings(derive(dataset))["towers.training.epochs"].reason
    with pytest.raises(UserError, match="unknown name"):
        derive(dataset, ["split.mini=3"])


def test_batches_divide_among_the_ranks(tmp_path):
    dataset = write(tmp_path, visits(), shown_between(0, 100))
    run = derive(dataset, ranks=3).run
    assert run.towers.training.batch_size == 15  # of 16
    assert run.ranker.training.batch_size == 15  # of 16


@pytest.mark.parametrize(
    ("count", "change", "overrides", "expected"),
    [
        (40_000, None, (), (0.1, 10)),
        (40_000, None, ("ranker.validation.share=0",), (0.0, 3)),
        (40_000, None, ("ranker.validation.share=0.3",), (0.3, 10)),
        (40_000, None, ("ranker.training.epochs=7",), (0.1, 7)),
        (40_000, "latest", (), (0.0, 3)),  # have one label alone
        (40_000, "earlier", (), (0.0, 3)),
        (5000, None, (), (0.0, 3)),
    ],
)
def test_the_latest_rows_of_a_small_log_say_how_long_a_ranker_trains(
    count, change, overrides, expected, tmp_path
):
    shown = shown_between(0, 100, count)
    if change is not None:  # the ranker's rows are those of days 50 to 80
        shown = [
            (*row[:3], row[3] if (row[2] > 77) != (change == "latest") else True)
            for row in shown
        ]
    dataset = write(tmp_path, visits(), shown)
    moments = (
        f"split.towers_until={START + 50 * DAY}",
        f"split.test_from={START + 80 * DAY}",
    )
    derived = derive(dataset, [*moments, *overrides])
    found = derived.run.ranker
    assert (found.validation.share, found.training.epochs) == expected
    chosen = settings(derived)
    if expected == (0.1, 10):
        assert (
            "training rows: the latest say when to stop"
            in chosen["ranker.validation.share"].reason
        )
        assert chosen["ranker.training.epochs"].reason.startswith("at most")


def test_a_large_log_is_learned_from_once(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_SMALL_TRAINING", 1000)
    dataset = write(tmp_path, visits(), shown_between(0, 100, 5000))
    ranker = derive(dataset).run.ranker
    assert (ranker.validation.share, ranker.training.epochs) == (0.0, 1)


def test_text_of_other_names(tmp_path):
    log = visits()
    ids = sorted({row[1] for row in log})
    items = {"name": [f"n {i}" for i in ids], "stock": ids, "about": ["a"] * len(ids)}
    items["picture"] = [f"https://shop.example/{i}.jpg" for i in ids]
    items["price"] = [1.5] * len(ids)  # says nothing of what an item is
    run = derive(write(tmp_path, log, items=items)).run
    assert run.content.prompt.template == "{name}. {about}."


def test_only_the_asked_sections_read_the_log(tmp_path):
    dataset = write(tmp_path, visits())
    (tmp_path / "interactions.parquet").unlink()
    (choice,) = derive(dataset, sections=("content",)).choices
    assert str(choice) == "content.prompt.template=the paper's prompt (of title)"
    with pytest.raises(UserError):
        derive(dataset, sections=("split",))
