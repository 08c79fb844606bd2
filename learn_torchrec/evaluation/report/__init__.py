"""The report of a run: one self-contained HTML page, and Markdown and JSON."""
