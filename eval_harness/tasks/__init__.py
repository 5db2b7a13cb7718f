"""lm-eval tasks of preference data: accuracy, implicit rewards, likelihood of answers; and standard benchmarks."""
