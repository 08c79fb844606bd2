"""Faults on purpose: `make test-faults`.

- Every stage is killed with SIGKILL at random moments of its work, all its ranks at
  once, and run again: the artefact must equal that of a run nobody killed, byte for
  byte.
- One byte of every file of every artefact and checkpoint is changed, and each file is
  cut off: the stage that reads it must refuse it in one line, or go on from an earlier
  checkpoint to the same result.
- What an asynchronous checkpoint costs, beside a synchronous one: `save_cost`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.benchmarks import save_cost
from apps.benchmarks.measure import add_json, machine
from apps.program import run, write_json
from learn_torchrec.datasets.generated import GeneratedConfig, write_shop

_LIMIT = 900.0  # seconds of one stage
_SHOP = GeneratedConfig(users=400, items=200, days=12, impressions=36_000)
_SETTINGS = (
    "content.encoder.layers=4",
    "content.encoder.tokens_per_batch=512",
    "split.actions=click,buy",
    "split.min_events=4",
    "towers.training.epochs=6",
    "towers.training.batch_size=20",
    'ranker.features.sparse=[{"column": "user_id"}, {"column": "item_id"}]',
    "ranker.features.dense=log_price,item_age_days",
    "ranker.training.batch_size=64",
    "ranker.training.epochs=2",
    "checkpoint.every_steps=7",
)
# Of every artefact: how it came about, not what it is.
_RECORDS = ("config.json", "manifest.json", "log.jsonl")


@dataclass(frozen=True)
class Stage:
    """A program, the artefacts that it reads by option, its ranks and settings."""

    name: str
    app: str
    inputs: tuple[tuple[str, str], ...] = ()
    ranks: int = 1
    settings: tuple[str, ...] = ()
    share: float = 0.0

    def command(self, folder: Path, out: Path) -> list[str]:
        """Return the command that makes `out` from the artefacts in `folder`."""
        module = ["-m", f"apps.{self.app}"]
        if self.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            module = [*launcher, f"--nproc_per_node={self.ranks}", *module]
        data = f"parquet:{folder / 'shop'}"
        options = ["--data", data, "--out", str(out), "--set", *_SETTINGS]
        options += self.settings
        for option, artefact in self.inputs:
            options += [option, str(folder / artefact)]
        return [sys.executable, *module, *options]


STAGES = (
    Stage("content", "encode_content", share=0.1),
    Stage("towers", "train_towers", (("--content", "content"),), share=0.22),
    Stage(
        "towers2",
        "train_towers",
        (("--content", "content"),),
        ranks=2,
        settings=("towers.model.inputs=content+id",),
        share=0.1,
    ),
    Stage(
        "vectors",
        "export_vectors",
        (("--content", "content"), ("--towers", "towers")),
        share=0.12,
    ),
    Stage("ranker", "train_ranker", (("--vectors", "vectors"),), share=0.22),
    Stage("ranker2", "train_ranker", (("--vectors", "vectors"),), ranks=2, share=0.12),
    Stage(
        "predictions",
        "predict",
        (("--vectors", "vectors"), ("--ranker", "ranker")),
        share=0.12,
    ),
)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a stage in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=log.open("ab"),
        start_new_session=True,
    )


def complete(stage: Stage, folder: Path, out: Path) -> float:
    """Run a stage to its end; return the seconds it took.

    Raises:
        RuntimeError: it failed; with the end of its log.
    """
    log = out.with_suffix(".stderr")
    began = time.monotonic()
    status = start(stage.command(folder, out), log).wait(_LIMIT)
    if status:
        raise RuntimeError(f"{stage.name} failed: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def kill(stage: Stage, folder: Path, out: Path, after: float) -> bool:
    """Kill a stage and all its ranks; return whether it was still at work."""
    process = start(stage.command(folder, out), out.with_suffix(".stderr"))
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def content_of(directory: Path) -> dict[str, str]:
    """Return the checksum of every file that is what the artefact is."""
    files = json.loads((directory / "manifest.json").read_text())["files"]
    return {
        name: described["sha256"]
        for name, described in files.items()
        if name not in _RECORDS
    }


def random_kills(
    stage: Stage, folder: Path, seconds: float, kills: int, seed: int
) -> dict[str, int]:
    """Kill a stage again and again; return how often it then gave the same artefact.

    Two of three kills hit a fresh run, the third one that was killed before.
    """
    dice = random.Random(f"{seed} {stage.name}")
    wanted = content_of(folder / stage.name)
    done = identical = 0
    while done < kills:
        out = folder / "killed" / f"{stage.name}-{done}"
        hits = 0
        for _ in range(2 if done % 3 == 2 else 1):
            # Imports take the first part of a run, in which nothing is at stake.
            hits += kill(stage, folder, out, seconds * dice.uniform(0.45, 1.0))
        if not hits:
            shutil.rmtree(out)
            continue
        complete(stage, folder, out)
        done += 1
        identical += content_of(out) == wanted
        shutil.rmtree(out)
        print(f"{stage.name}: {identical} of {done} kills, identical", flush=True)
    return {"kills": done, "identical": identical}


def damaged_copies(directory: Path, dice: random.Random) -> Sequence[tuple[str, bytes]]:
    """Return every file of an artefact with a byte changed, and cut off."""
    copies = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name, whole = str(path.relative_to(directory)), path.read_bytes()
        if name in ("config.json", "log.jsonl") or not whole:
            continue  # for people: no stage reads them
        place = dice.randrange(len(whole))
        changed = bytes([whole[place] ^ (1 << dice.randrange(8))])
        copies.append((name, whole[:place] + changed + whole[place + 1 :]))
        copies.append((name, whole[: dice.randrange(len(whole))]))
    return copies


def corruptions(folder: Path, dice: random.Random) -> dict[str, Any]:
    """Damage every artefact that a stage reads; return how often it was refused."""
    readers = {
        artefact: stage for stage in STAGES for _, artefact in stage.inputs[::-1]
    }
    counts: dict[str, Any] = {"corruptions": 0, "refused_cleanly": 0, "not_refused": []}
    for artefact, stage in readers.items():
        for name, damaged in damaged_copies(folder / artefact, dice):
            path = folder / artefact / name
            whole = path.read_bytes()
            path.write_bytes(damaged)
            try:
                clean, said = refused(stage, folder)
            finally:
                path.write_bytes(whole)
            counts["corruptions"] += 1
            counts["refused_cleanly"] += clean
            if not clean:
                counts["not_refused"].append(f"{artefact}/{name}: {said}")
        print(f"{artefact}: {counts}", flush=True)
    return counts


def refused(stage: Stage, folder: Path) -> tuple[bool, str]:
    """Run a stage on a damaged input; return whether it said so in one line."""
    out, log = folder / "refused", folder / "refused.stderr"
    log.unlink(missing_ok=True)
    status = start(stage.command(folder, out), log).wait(_LIMIT)
    said = [line for line in log.read_text().splitlines() if "error: " in line]
    if out.exists():
        shutil.rmtree(out)
    clean = status == 2 and len(said) == 1 and "Traceback" not in log.read_text()
    return clean, f"exit code {status}, {said[-1] if said else 'nothing said'}"


def damaged_checkpoints(folder: Path, dice: random.Random) -> dict[str, int]:
    """Damage the newest checkpoint of a killed run; it must end as if it had not been.

    Raises:
        RuntimeError: a run did not go on.
    """
    counts = {"checkpoints": 0, "checkpoints_identical": 0}
    for stage in (s for s in STAGES if s.name in ("towers", "ranker")):
        for kind in range(4):
            out = folder / "killed" / stage.name
            newest = _killed_with_two_checkpoints(stage, folder, out)
            copies = damaged_copies(newest, dice)
            name, damaged = copies[dice.randrange(len(copies) // 2) * 2 + kind % 2]
            (newest / name).write_bytes(damaged)
            complete(stage, folder, out)
            counts["checkpoints"] += 1
            same = content_of(out) == content_of(folder / stage.name)
            counts["checkpoints_identical"] += same
            shutil.rmtree(out)
    print(counts, flush=True)
    return counts


def _killed_with_two_checkpoints(stage: Stage, folder: Path, out: Path) -> Path:
    process = start(stage.command(folder, out), out.with_suffix(".stderr"))
    places = folder / "killed/checkpoints" / stage.name
    while len(list(places.glob("step-*"))) < 2:
        if process.poll() is not None:
            raise RuntimeError(f"{stage.name} ended before its second checkpoint")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return max(places.glob("step-*"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the suite, print the counts, and write them where asked."""
    parser = argparse.ArgumentParser(prog="apps.benchmarks.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="stages side by side")
    parser.add_argument("--seed", type=int, help="of the moments (default: the time)")
    add_json(parser, "faults.json")
    args = parser.parse_args(argv)
    seed = int(time.time()) if args.seed is None else args.seed
    dice = random.Random(seed)
    results: dict[str, Any] = {"machine": machine(), "seed": seed}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        (folder / "shop").mkdir()
        for _ in write_shop(_SHOP, folder / "shop"):
            pass
        seconds = {s.name: complete(s, folder, folder / s.name) for s in STAGES}
        (folder / "killed").mkdir()
        with ThreadPoolExecutor(args.jobs) as pool:
            counts = {
                stage.name: pool.submit(
                    random_kills,
                    *(stage, folder, seconds[stage.name]),
                    *(max(1, round(stage.share * args.kills)), seed),
                )
                for stage in STAGES
            }
        results["stages"] = {name: count.result() for name, count in counts.items()}
        results |= corruptions(folder, dice)
        results |= damaged_checkpoints(folder, dice)
    for count in ("kills", "identical"):
        results[count] = sum(stage[count] for stage in results["stages"].values())
    results |= save_cost.measure()
    print(json.dumps(results, indent=2))
    if args.json:
        # The hour of `soak` adds its figures to the same file.
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        write_json(args.json, known | results)
    ok = results["kills"] == results["identical"]
    ok &= results["corruptions"] == results["refused_cleanly"]
    ok &= results["checkpoints"] == results["checkpoints_identical"]
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    run(main)
