"""One chunk of runs from start to end, and what it leaves: events, rows, states, measures."""
