"""Many facts in one model, asked again at checkpoints: ways of putting them in, and what is left of them."""
