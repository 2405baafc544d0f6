"""Standard deviations of predictions: from a network's last layer, and how far errors bear them out."""
