"""Training loops and the pieces they share."""
