"""What is done to a built model before training, and models divided among processes."""
