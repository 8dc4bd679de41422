"""The elastic Vision Transformer: schedules, token merging and pruning, prompts, task parameters."""
