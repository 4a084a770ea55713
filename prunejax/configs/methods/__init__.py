"""Studies that compare ways of pruning."""
