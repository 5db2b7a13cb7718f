"""`make quickstart`: a real model, real preference pairs, and the result of training on them, on a laptop's CPU."""
