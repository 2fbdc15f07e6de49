"""Which of several models is better, by how much, and how sure that is."""
