"""Terms of the loss that ask for a smaller network."""
