"""Texts: rows of files, read, checked, found again by their content, and made token ids of by the model's own tokenizer."""
