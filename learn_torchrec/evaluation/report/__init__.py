"""The report of a run: one HTML page without network, and Markdown and JSON of it."""
