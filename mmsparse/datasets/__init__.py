"""Data transforms, and errors that name the file at fault."""
