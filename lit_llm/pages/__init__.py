"""What the HTML pages of all packages share: their look, and text that comes from outside."""
