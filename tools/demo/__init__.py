"""A page to choose an image and a model, and see where a query attends."""
