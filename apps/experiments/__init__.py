"""The paper's tables, as runs on anyone's data: see `apps.experiment`."""
