"""A trained model measured on held-out rows."""
