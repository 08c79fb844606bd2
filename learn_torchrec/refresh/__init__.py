"""Runs that follow one another every day: which one is served, and what comes next."""
