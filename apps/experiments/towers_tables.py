"""Tables whose rows are towers: trained alike but for what a row changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from learn_torchrec.content.store import ContentStore
from learn_torchrec.evaluation.retrieval import ScoreBlock
from learn_torchrec.presets import Run
from learn_torchrec.towers.encoders.architecture import refuse_absent_encoder
from learn_torchrec.training.distributed import process_group

from .base import BERT, LLM, Goal, Request, judged
from .towers_arms import FULL_SOFTMAX, IDS_ALONE, TowersArm, rank_arms, train_arms

LEARN = "learn"
_PAPERS = ("towers.loss.objective=dense_all_action", "towers.model.inputs=content")
CAUSAL = (*_PAPERS, "towers.model.item_tower=causal")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Towers of a table.

    Attributes:
        title: as printed.
        settings: what they change of the derived ones; `{content_dim}`,
            `{hidden_size}` and `{model}` are the language model's.
        encoder: that reads the texts.
        published: the paper's H@100, on its own data.
    """

    title: str
    settings: tuple[str, ...] = ()
    encoder: str = LLM
    published: float | None = None


DERIVED = Row(title="LEARN, derived settings")


@dataclass(frozen=True, kw_only=True)
class TowersTable:
    """Towers beside each other, and beside what needs no training.

    Attributes:
        rows: by name; one of them is the reference.
        title: what it asks.
        reference: the row that the others are compared with.
        settings: of all rows, unless the user sets them.
        goals: what the paper finds.
        published: the paper's H@100 of baselines, on its own data.
        note: further lines under the table.
        shown: metrics of the page's first table, at every cut-off.
        titles: of rows that are not towers, where they are not the usual ones.
    """

    rows: Mapping[str, Row]
    title: str = ""
    reference: str = LEARN
    settings: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    shown: tuple[str, ...] = ("r", "h")
    titles: Mapping[str, str] = field(default_factory=dict)

    def check(self, request: Request) -> None:
        """Resolve every row, and look for the encoders."""
        request.refuse_absent(self._encoders())
        request = request.with_settings(self.settings)
        for arm in self._arms(request).values():
            refuse_absent_encoder(arm.resolve(request.args).towers.model.encoder)

    def run(
        self,
        request: Request,
        further: Mapping[str, Sequence[ScoreBlock]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Encode, train and rank; `further` are rows that no towers rank by."""
        request = request.with_settings(self.settings)
        stores = {name: request.encode(name) for name in self._encoders()}
        dim = ContentStore.open(stores[self.rows[self.reference].encoder]).dim
        arms = self._arms(request, dim)
        trained = train_arms(request.args, arms, request.towers)
        with process_group() as device:
            found = rank_arms(
                request.args, arms, trained, self.reference, device, further
            )
        return found | summary(
            found,
            self.rows,
            self.reference,
            self.goals,
            self.shown,
            self.published,
            self.titles,
            [self.note] if self.note else [],
        )

    def resolve(self, request: Request) -> Run:
        """Return the configuration of the reference."""
        request = request.with_settings(self.settings)
        return self._arms(request)[self.reference].resolve(request.args)

    def _encoders(self) -> list[str]:
        return list(dict.fromkeys(row.encoder for row in self.rows.values()))

    def _arms(self, request: Request, dim: int = 1) -> dict[str, TowersArm]:
        """Return the arms; `dim` is the content's, where it is known already."""
        encoder = request.resolved(LLM).content.encoder
        known = {
            "{content_dim}": str(dim),
            "{hidden_size}": str(max(1, dim // len(encoder.layers))),
            "{model}": encoder.model,
        }

        def settled(setting: str) -> str:
            for name, value in known.items():
                setting = setting.replace(name, value)
            return setting

        return {
            name: TowersArm(
                request.content(row.encoder), tuple(map(settled, row.settings))
            )
            for name, row in self.rows.items()
        }


def summary(
    found: Mapping[str, Any],
    rows: Mapping[str, Row],
    reference: str,
    goals: Sequence[Goal],
    shown: Sequence[str],
    published: Mapping[str, float] = MappingProxyType({}),
    titles: Mapping[str, str] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what the first table of the page shows.

    Args:
        found: by `rank_arms`.
        rows: of towers.
        reference: the row that the others are compared with.
        goals: to judge, by recall at the first cut-off.
        shown: metrics, at every cut-off.
        published: the paper's H@100 of rows that are not towers.
        titles: of rows that are not towers, where they are not the usual ones.
        notes: under the table.
    """
    ranking, ks = found["history_in_use"], found["ks"]
    by_metric, first = found["groups"]["all"][ranking], f"r@{ks[0]}"
    titles = {**titles, **{name: row.title for name, row in rows.items()}}
    printed = {**published, **{name: row.published for name, row in rows.items()}}
    compared = {
        group: ranked[ranking][first]["rows"]
        for group, ranked in found["groups"].items()
        if ranking in ranked
    }
    return {
        "rows": {
            name: {
                "title": titles.get(name),
                "published": printed.get(name),
                **{metric: one["rows"][name] for metric, one in by_metric.items()},
            }
            for name in by_metric[first]["rows"]
        },
        "reference": reference,
        "metrics": [f"{metric}@{k}" for k in ks for metric in shown],
        "published_metric": "h@100",
        "goal_metric": first,
        "goals": judged(goals, compared),
        "notes": [*notes],
    }


TABLE1 = TowersTable(
    title="What represents an item: its ID, or its text read by a BERT or an LLM",
    rows={
        "id": Row(title="ID", settings=IDS_ALONE, published=0.0370),
        "bert": Row(
            title="text, BERT",
            settings=("towers.model.inputs=content",),
            encoder=BERT,
            published=0.0576,
        ),
        "llm": Row(
            title="text, LLM",
            settings=("towers.model.inputs=content",),
            published=0.0701,
        ),
        "bert_id": Row(title="text, BERT, and ID", encoder=BERT),
        LEARN: Row(title="text, LLM, and ID (LEARN)"),
    },
    goals=(
        Goal(row="llm", than="bert"),
        Goal(row="bert", than="id"),
        Goal(row=LEARN, than="llm"),
        Goal(row=LEARN, than="id"),
    ),
    note="The row of IDs is trained with a plain softmax, without room for rare items.",
)

TABLE3 = TowersTable(
    title="Beside models of the industry: every item ranked, the last event held out",
    rows={
        "sasrec": Row(title="SASRec, full softmax", settings=IDS_ALONE),
        "hstu": Row(
            title="HSTU, full softmax",
            settings=(*IDS_ALONE, "towers.model.encoder.architecture=hstu"),
        ),
        LEARN: Row(title="LEARN, derived settings"),
        "learn_plain": Row(title="LEARN, full softmax", settings=FULL_SOFTMAX),
        "learn_hstu": Row(
            title="LEARN with HSTU's encoder",
            settings=("towers.model.encoder.architecture=hstu",),
        ),
    },
    settings=(
        "split.holdout=leave_one_out",
        "retrieval.ks=10,50,200",
        "retrieval.filter_history=true",
    ),
    goals=(Goal(row=LEARN, than="sasrec"), Goal(row=LEARN, than="hstu")),
    note="SASRec and HSTU are this project's towers on ids alone with those encoders. "
    "Full softmax: without the room that LEARN's derived settings leave rare items. "
    "With one target a user, R is the hit rate.",
    shown=("r", "n"),
)

TABLE4 = TowersTable(
    title="What the item tower reads, in the paper's form of training",
    rows={
        "content": Row(
            title="(c) content vector itself",
            settings=(
                *_PAPERS,
                "towers.model.item_tower=content",
                "towers.model.encoder.vector_dim={content_dim}",
            ),
            published=0.0468,
        ),
        "self": Row(
            title="(b) item alone",
            settings=(*_PAPERS, "towers.model.item_tower=self"),
            published=0.0505,
        ),
        "causal": Row(
            title="(a) item after earlier targets",
            settings=CAUSAL,
            published=0.0701,
        ),
        "projection": Row(
            title="projection alone (not in the paper)",
            settings=(*_PAPERS, "towers.model.item_tower=projection"),
        ),
        LEARN: DERIVED,
    },
    reference="causal",
    goals=(Goal(row="causal", than="self"), Goal(row="self", than="content")),
    note="Rows (a) to (c) and the projection read the text alone; dense all-action "
    "loss. The paper's first version could not train (c); .0468 is the second's.",
)

TABLE5 = TowersTable(
    title="What comprehends the history: a language model tuned by LoRA, or a "
    "transformer trained from random weights",
    rows={
        **{
            f"lora_{rank}": Row(
                title=f"LLM, LoRA of rank {rank}",
                settings=(
                    *CAUSAL,
                    "towers.model.encoder.architecture=language_model",
                    "towers.model.encoder.language_model={model}",
                    "towers.model.encoder.width={hidden_size}",
                    "towers.model.encoder.num_heads=1",
                    f"towers.model.encoder.lora_rank={rank}",
                ),
                published=published,
            )
            for rank, published in ((16, 0.0376), (64, 0.0504), (128, 0.0513))
        },
        "transformer": Row(
            title="transformer, random weights", settings=CAUSAL, published=0.0701
        ),
    },
    reference="transformer",
    goals=(Goal(row="transformer", than="lora_128"),),
    note="Text alone, dense all-action loss. The paper's ranks are not stated; its "
    "sizes (134, 286 and 572 million weights) fit about 64, 128 and 256 of a model "
    "of 7 billion.",
)

_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)

CURVE = TowersTable(
    title="How many users the towers need to be better than the content they read",
    rows={
        f"{part}_{share:g}": Row(
            title=f"{title}, {share:.0%} of the users",
            settings=(f"towers.training.user_share={share:g}", *settings),
        )
        for part, title, settings in (
            (LEARN, "LEARN", ()),
            ("text", "text alone", ("towers.model.inputs=content",)),
        )
        for share in _SHARES
    },
    reference=f"{LEARN}_1",
    goals=tuple(
        Goal(row=f"{LEARN}_{share:g}", than="content_mean", group=group)
        for share in _SHARES
        for group in ("all", "tail")
    ),
    note="Popularity and co-occurrence know all users.",
)

V2 = TowersTable(
    title="Alignment, and which pairs teach it (the paper's second version)",
    rows={
        "uniform": Row(
            title="pairs drawn uniformly (v1)",
            settings=(*CAUSAL, "towers.sampling.weighting=uniform"),
            published=0.0701,
        ),
        "recent": Row(
            title="pairs weighted to recent events (v2)",
            settings=(*CAUSAL, "towers.sampling.weighting=recent"),
            published=0.0751,
        ),
        **{
            f"pairs_{n}x{n}": Row(
                title=f"{n} x {n} pairs a user",
                settings=(
                    *CAUSAL,
                    f"towers.sampling.num_history_samples={n}",
                    f"towers.sampling.num_target_samples={n}",
                ),
            )
            for n in (1, 4, 20)
        },
        LEARN: DERIVED,
    },
    reference="recent",
    goals=(
        Goal(row="recent", than="content_mean", times=3),
        Goal(row="recent", than="uniform"),
        Goal(row="recent", than="pairs_1x1"),
    ),
    published={"content_mean": 0.0101},
    note="Without alignment: averaged content vectors. 10 x 10 pairs a user but where "
    "a row says otherwise.",
)
