"""What every inference engine's adapter needs: from a model object to the exact map of its weights. Needs torch."""
