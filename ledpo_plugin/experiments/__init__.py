"""Experiments: several variants, the same budget, several seeds, one report. `yaml_recipes/` holds them."""
