"""Checksums of Parquet pages: written into our files, verified in everybody's.

A file without checksums is read as before. They tell a flipped bit also where a file
has left its artefact, and with it the manifest.
"""

from typing import Any

import pyarrow.dataset as ds

WRITTEN: dict[str, Any] = {"write_page_checksum": True}  # for `pyarrow.parquet`
VERIFIED: dict[str, Any] = {"page_checksum_verification": True}


def parquet_format() -> ds.ParquetFileFormat:
    """Return the format of data sets whose pages are verified when they are read."""
    options = ds.ParquetFragmentScanOptions(**VERIFIED)
    return ds.ParquetFileFormat(default_fragment_scan_options=options)
