"""The precision of matrix products, and of what ranks send each other."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
Communication = Literal["float32", "float16", "bfloat16"]

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def autocast(
    dtype: torch.dtype, device_type: str
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matrix products are of a dtype; float32 changes none.

    Parameters stay float32 either way.
    """
    if dtype == torch.float32:  # autocast to it would only warn
        return contextlib.nullcontext()
    return torch.autocast(device_type, dtype)


@contextlib.contextmanager
def tf32(precision: Precision) -> Iterator[None]:
    """Round the inputs of CUDA's float32 products to TF32 in the block, if it asks."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
