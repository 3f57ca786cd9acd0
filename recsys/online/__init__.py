"""What happened since a bundle was sealed: events that were accepted, and what was said of items."""
