"""What the training loop stands on: its settings, its set-up, its folder."""
