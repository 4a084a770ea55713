"""What a study leaves behind: the run directory, its tables, checkpoints and progress."""
