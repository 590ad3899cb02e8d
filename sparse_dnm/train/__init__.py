"""Training: steps, schedules, constraints, checkpoints."""
