"""How the runs of a study lie on devices: layouts, stacks of members, memory, compilation."""
