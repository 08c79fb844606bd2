"""Writes the measured tables into the README and the documentation."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learn_torchrec.evaluation.words import ranked_by

from .markdown import markdown
from .measure import RESULTS
from .paper_tables import paper_tables
from .study_tables import (
    RANKER_STUDIES,
    RETRIEVAL_STUDIES,
    arms_table,
    gains_table,
    next_items_table,
    shuffled_table,
    study_table,
)

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "pages" / "results.md",
    ROOT / "docs" / "pages" / "tables.md",
)
_RETRIEVAL = {
    "learn": "LEARN",
    "popularity": "popularity",
    "content_mean": "averaged content vectors (paper's Baseline-v1)",
    "co_occurrence": "item-item co-occurrence, tuned",
}
_SEEDS_ROWS = {
    **{
        name: ranked_by(name)
        for name in ("popularity", "content_mean", "already_bought")
    },
    "content": "LEARN, content",
    "content+id": "LEARN, content + ID",
}
AMAZON_COLUMNS = {
    "R@10": ("retrieval", "r@10"),
    "N@10": ("retrieval", "n@10"),
    "R@10, items with at most 5 training events": ("tail_targets", "r@10"),
}
RETAIL_COLUMNS = {
    "R@50, all targets": ("retrieval", "r@50"),
    "R@50, new targets": ("new_targets", "r@50"),
}


def render(text: str, tables: Mapping[str, str]) -> str:
    """Return a document's text with every measured block rendered again.

    Raises:
        ValueError: a block that no table is for.
    """

    def block(match: re.Match[str]) -> str:
        begin, name, end = match[1], match[2], match[3]
        if name not in tables:
            raise ValueError(f"no table is called {name}")
        return begin + tables[name] + end

    pattern = r"(<!-- (\w+):begin [^\n]*-->\n).*?(<!-- \2:end -->)"
    return re.sub(pattern, block, text, flags=re.DOTALL)


def measured_tables() -> dict[str, str]:
    """Return every table by the name of its block, from the results' JSON."""
    results = {
        path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")
    }
    measured = {
        **ranker_rows(results["ranker"]),
        **data_rows(results["data"], results["content"]),
        **metrics_rows(results["metrics"]),
        **serving_rows(results["serving"]),
        **faults_rows(results["faults"]),
    }
    studies = {
        name: results[f"study_{name}"]
        for name in RANKER_STUDIES
        if f"study_{name}" in results
    }
    retrieval = {
        name: results[f"study_retrieval_{name}"]
        for name in RETRIEVAL_STUDIES
        if f"study_retrieval_{name}" in results
    }
    return {
        "gains": gains_table(studies, retrieval),
        "next_items": next_items_table(retrieval),
        "retrieval": retrieval_table(results["quickstart"]),
        "amazon": seeds_table(results["amazon"], AMAZON_COLUMNS),
        "retail": seeds_table(results["retail"], RETAIL_COLUMNS),
        "towers": towers_table(results["towers"]),
        "study": study_table(studies),
        "arms": arms_table(studies["complete_journey"]),
        "codes": arms_table(studies["complete_journey_counts"]),
        "shuffled": shuffled_table(results["study_complete_journey_shuffled"]),
        "daily": daily_table(results["refresh"]),
        "measured": markdown(["", ""], measured.items()),
        **paper_tables(results),
    }


def daily_table(results: dict[str, Any]) -> str:
    """Return what refreshing every evening gives and costs."""
    market, gap = results["market"], results["refresh_uauc_gap"]
    error = results["refresh_uauc_gap_standard_error"]
    new, found = (
        results[name] for name in ("new_items", "new_items_with_vectors_same_evening")
    )
    rows = {
        f"UAUC of the next day, over never refreshed ({market['evenings']} evenings)": (
            f"{results['uauc_lost_without_refresh']:+.2f} points"
        ),
        f"the same, over from scratch ({results['evenings_from_scratch']} evenings)": (
            f"{-gap:+.2f} points (standard error {error:.2f})"
        ),
        "processor time, over from scratch": f"{results['refresh_time_ratio']:.2f} x",
        "AUC on items that came after the first run, over never refreshed": (
            f"{results['auc_gained_on_items_after_first_run']:+.1f} points"
        ),
        "new items with vectors the same evening": f"{found} of {new}",
    }
    return markdown(["a run refreshed every evening", ""], rows.items())


def retrieval_table(results: dict[str, Any]) -> str:
    """Return the quickstart's retrieval metrics."""
    metrics = ("h@50", "r@50", "n@50", "r@100")

    def cells(name: str) -> list[str]:
        found = [results["retrieval"][name][metric] for metric in metrics]
        found.append(results["tail_targets"][name]["r@50"])
        return [f"{value:.4f}" for value in found]

    rows = [[title, *cells(name)] for name, title in _RETRIEVAL.items()]
    return markdown(["", *map(str.upper, metrics), "R@50, long-tail targets"], rows)


def seeds_table(results: dict[str, Any], columns: dict[str, tuple[str, str]]) -> str:
    """Return a benchmark over seeds: means, and ranges where seeds vary.

    Args:
        results: what `apps.benchmarks.retrieval` wrote.
        columns: title to group of targets and metric.
    """

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return "{mean:.3f} ({min:.3f} to {max:.3f})".format(**value)
        return f"{value:.3f}"

    rows = [
        [title, *(cell(results[group][name][key]) for group, key in columns.values())]
        for name, title in _SEEDS_ROWS.items()
        if name in results["retrieval"]
    ]
    return markdown(["", *columns], rows)


def metrics_rows(results: dict[str, Any]) -> dict[str, str]:
    """Return the speed of the evaluation."""
    return {
        f"AUC, UAUC and WUAUC of {results['rows']:,} rows from Parquet": (
            f"{results['seconds']:.0f} s, {results['peak_gb']:.1f} GB"
        ),
        "per-user AUC over a loop with scikit-learn, 1,000,000 rows": (
            f"{results['over_sklearn']:.0f} x, "
            f"largest difference {results['max_difference']:.0e}"
        ),
        "exact top 100, time over FAISS's flat index": (
            f"{results['topk_over_faiss']:.2f} x"
        ),
    }


def ranker_rows(results: dict[str, Any]) -> dict[str, str]:
    """Return the ranker's examples a second relative to TorchRec's DLRM."""
    off, statistics, attention, parquet, two, dlrm_two = (
        results[name]
        for name in (
            "off_over_dlrm",
            "statistics_over_dlrm",
            "attention_over_dlrm",
            "parquet_over_memory",
            "two_ranks_over_one",
            "dlrm_two_ranks_over_one",
        )
    )
    return {
        "ranker over TorchRec's DLRM, from memory": (
            f"LEARN off {off:.2f} x, with statistics over 80 items "
            f"{statistics:.2f} x, with attention {attention:.2f} x"
        ),
        "ranker, LEARN on, from Parquet over from memory": f"{parquet:.2f} x",
        "two ranks over one": f"LEARN on {two:.2f} x, TorchRec's DLRM {dlrm_two:.2f} x",
    }


def data_rows(data: dict[str, Any], content: dict[str, Any]) -> dict[str, str]:
    """Return the speed of data preparation, loading and content extraction."""
    sizes, rates, peaks = (
        " / ".join(cells)
        for cells in zip(
            *(
                (
                    f"{line['rows'] // 10**6}",
                    f"{line['rows_per_s'] / 1e6:.1f}",
                    f"{line['peak_mb'] / 1000:.1f}",
                )
                for line in data["scale"]
            ),
            strict=True,
        )
    )
    loops = data["batches_over_plain_loop"], data["shuffled_over_plain_shuffle"]
    speeds = content["over_one_by_one"], content["float32"]["over_one_by_one"]
    return {
        f"{sizes} million interactions prepared": f"{rates} million rows/s, {peaks} GB",
        "batches from Parquet over a plain pyarrow loop": (
            "in order {:.2f} x, both shuffled {:.2f} x".format(*loops)
        ),
        f"content in batches over one by one, {content['dtype']}": (
            "{:.1f} x, float32 {:.1f} x".format(*speeds)
        ),
        "MiniLM over sentence-transformers' `encode`": (
            f"{content['over_sentence_transformers']:.2f} x"
        ),
    }


def serving_rows(results: dict[str, Any]) -> dict[str, str]:
    """Return the server under load from another process."""
    minutes = results["reload_seconds"] / 60
    return {
        f"server: `/rank` of {results['candidates']} candidates, p50 and p99; "
        "requests/s over the eager ranker's behind the same server": (
            f"{results['rank_p50_ms']:.0f} ms, {results['rank_p99_ms']:.0f} ms; "
            f"{results['requests_per_s_over_eager']:.1f} x"
        ),
        f"server: top 100 of {results['retrieve_items']:,} items, p99; recall": (
            f"{results['retrieve_p99_ms']:.1f} ms; {results['index_recall_at_100']:.3f}"
        ),
        f"server: {results['reloads']} reloads in {minutes:.0f} minutes at 80 % of its "
        "capacity, failed requests; growth of memory": (
            f"{results['reload_failed_requests']} of {results['reload_requests']:,}; "
            f"{results['memory_growth']:+.1%}"
        ),
        "tables in int8, size; change of UAUC; served scores from training's": (
            f"{results['quantised_size_ratio']:.2f} x; "
            f"{results['quantised_uauc_diff']:.0e}; "
            f"{results['parity_max_difference']:.0e}"
        ),
    }


def faults_rows(results: dict[str, Any]) -> dict[str, str]:
    """Return the outcomes of fault injection."""
    minutes = results["soak_minutes"]
    return {
        "SIGKILLs at random moments of seven stages, ended identical": (
            f"{results['identical']} of {results['kills']}"
        ),
        "damaged files refused in one line; checkpoints passed over, ended identical": (
            f"{results['refused_cleanly']} of {results['corruptions']}; "
            f"{results['checkpoints_identical']} of {results['checkpoints']}"
        ),
        "forged artefacts of five kinds, refused in one line": (
            f"{results['forged_one_line']} of {results['forged']}"
        ),
        f"system errors injected into {results['errno_kinds_tried']:,} of "
        f"{results['errno_kinds']:,} kinds of calls that write, "
        f"{results['errno_faults']:,} cases; right state after, one line": (
            f"{results['errno_state_right']:,}; {results['errno_one_line']:,}"
        ),
        "races of two processes for one output, an output lost; ranks given different "
        "data, artefacts or settings, refused": (
            f"{results['races_lost']} of {results['races']}; "
            f"{results['ranks_refused']} of {results['ranks_disagree']}"
        ),
        f"step time lost to a checkpoint of {results['saved_mb'] / 1000:.1f} GB in a "
        "second thread over at once": f"{results['async_save_ratio']:.2f} x",
        f"ranker at two ranks, {minutes:.0f} minutes: growth of memory; of steps/s": (
            f"{results['soak_memory_growth']:+.1%}; "
            f"{results['soak_throughput_drift']:+.1%}"
        ),
    }


def towers_table(results: dict[str, Any]) -> str:
    """Return the towers beside the reference execution."""
    peak = results["loss_memory_ratio"], results["loss_peak_mb"]
    rows = {}
    for dtype in ("float32", "bfloat16"):
        rates = results[dtype]
        if "skipped" in rates:
            continue
        rows[f"training users/s, {dtype}"] = f"{rates['users_per_s_ratio']:.2f} x"
        shares = rates["gemm_share"], rates["reference_gemm_share"]
        rows[f"share of a {dtype} step that its bare matrix products take"] = (
            "{:.2f} (reference {:.2f})".format(*shares)
        )
    rows |= {
        "best of ours over the reference in float32": (
            f"{results['best_over_reference_default']:.2f} x"
        ),
        "loader, samples/s (ids)": f"{results['loader_samples_per_s_ratio']:.0f} x",
        "loader and gathered vectors, samples/s": (
            f"{results['loader_with_vectors_ratio']:.1f} x"
        ),
        "bytes leaving the loader": f"{results['content_bytes_ratio']:.4f} x",
        "peak memory of the loss, 4,096 users x 10 x 10": (
            "{:.3f} x ({:.0f} MB)".format(*peak)
        ),
    }
    return markdown(["", "ours over the reference"], rows.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Write the documents."""
    argparse.ArgumentParser(
        prog="python -m apps.benchmarks.readme", description=__doc__
    ).parse_args(argv)
    tables = measured_tables()
    for document in DOCUMENTS:
        document.write_text(render(document.read_text(), tables))


if __name__ == "__main__":
    main()
