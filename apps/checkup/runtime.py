"""Checks of torch at work, from the findings of a child process (see `probe`)."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from . import Check, good, problem

PROBE_SECONDS = 120
Findings = Mapping[str, Mapping[str, Any]]
_REINSTALL = "make -B env (see the versions line above)"


def find(command: Sequence[str] | None = None) -> Findings:
    """Run the probe and return its findings by step.

    A step that the child crashed or hung before reporting holds an error. Another
    `command` may stand in for the probe.
    """
    command = command or [sys.executable, "-m", f"{__package__}.probe"]
    # A launcher sets these for its ranks; the probe is none of them.
    ranks = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {k: v for k, v in os.environ.items() if k not in ranks}
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            timeout=PROBE_SECONDS,
            check=False,
        )
        output, end = child.stdout, f"the process ended with code {child.returncode}"
        if child.returncode and child.stderr.strip():
            end += f" ({child.stderr.strip().splitlines()[-1]})"
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode()
        end = f"no answer within {PROBE_SECONDS} s"
    findings = {}
    for line in output.splitlines():
        if line.startswith('{"step"'):
            finding = json.loads(line)
            findings[finding["step"]] = finding
    return {
        step: findings.get(step, {"error": end})
        for step in ("devices", "fbgemm", "torchrec", "all_reduce")
    }


def check_devices(findings: Findings) -> Check:
    """Check that torch has the backend its devices need."""
    name = "backend"
    if "error" in findings["devices"]:
        return problem(name, findings["devices"]["error"], _REINSTALL)
    value = findings["devices"]["value"]
    gpus = value["gpus"]
    if not value["gloo"]:
        return problem(name, "this torch has no gloo backend", _REINSTALL)
    if gpus and not value["nccl"]:
        return problem(
            name,
            f"{len(gpus)} GPU(s), and this torch has no nccl backend",
            "make clean-env env ACCELERATOR=cuda",
        )
    if gpus:
        return good(name, f"nccl and gloo, {len(gpus)} x {gpus[0]}")
    build = f"CUDA {value['cuda_build']}" if value["cuda_build"] else "CPU"
    return good(name, f"gloo, no GPU visible (torch built for {build})")


def check_fbgemm(findings: Findings) -> Check:
    """Check an fbgemm operator on a known answer."""
    return _known_answer("fbgemm", findings, [0, 2, 2, 5], "operators load and run")


def check_torchrec(findings: Findings) -> Check:
    """Check a pooled embedding lookup on a known answer."""
    expected = [12.0, 14.0, 16.0, 18.0]
    return _known_answer("torchrec", findings, expected, "an embedding lookup runs")


def check_all_reduce(findings: Findings) -> Check:
    """Check that a process group can form and communicate."""
    return _known_answer(
        "all_reduce",
        findings,
        3.0,
        "gloo runs",
        fix="export GLOO_SOCKET_IFNAME=lo, or put this host's name in /etc/hosts",
    )


def _known_answer(
    step: str, findings: Findings, expected: Any, found: str, fix: str = _REINSTALL
) -> Check:
    finding = findings[step]
    if "error" in finding:
        return problem(step, finding["error"], fix)
    if finding["value"] != expected:
        return problem(
            step, f"wrong answer {finding['value']}, {expected} expected", fix
        )
    return good(step, found)
