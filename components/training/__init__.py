"""The one training loop, what it needs from its surroundings, and how it survives being killed."""
