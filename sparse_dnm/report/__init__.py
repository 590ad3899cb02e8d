"""What a training looked like: page, figures, animations."""
