"""Texts: rows of files, read, checked, found again by their content, and handed to a tokenizer as they are."""
