"""The steps of a refresh, and the run that is served."""
