"""What an experiment is: its file, variants, budget, plan, and what can be wrong with them."""
