"""A study: its settings, its plan of runs, how they are laid out, the loop."""
