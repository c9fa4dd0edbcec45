"""Where the jobs of a sweep run: a file for each engine."""
