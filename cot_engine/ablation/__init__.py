"""Strategy ablations: a grid of searches over a data set, at matched compute, in a store."""
