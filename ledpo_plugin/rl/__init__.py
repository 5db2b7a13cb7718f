"""Reinforcement learning: the mathematics of PPO, RLOO and GRPO, their rollouts and their trainers.

The mathematics (`advantages`, `kl`, `objectives`) is pure torch and knows neither recipe nor rank. Throughout, `R`
answers are rows and `T` tokens are columns, padded on the right; a mask `[R, T]` is True on response tokens, which
start at column 0 of each row and have no gap; a row may have none. What stands outside a mask, NaN included, reaches
neither a value nor a gradient. An answer to leave out of everything has a row of False.
"""
