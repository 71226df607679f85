"""The process itself: forks, signals and their exceptions, files, logs, and the servers that run it. Knows no metrics."""
