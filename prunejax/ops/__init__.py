"""Array work: convolutions, layers, exact ranking, noise."""
